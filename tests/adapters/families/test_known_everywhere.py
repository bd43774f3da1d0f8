"""Every family in the registry is known in each place that CONTRIBUTING.md lists; a failure says what to add where."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from lib_lora_train.adapters.families.base import base_weight
from lib_lora_train.adapters.families.scalar import LINEAR_IN
from lib_lora_train.adapters.registry import FAMILIES
from lib_lora_train.config.family_catalog import FAMILY_CATALOG, SELECTIVE
from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.presets import FAMILY_PRESETS
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.formats.kohya import network_kinds
from lib_lora_train.runs.estimates.trained_parameters import ESTIMATES
from tests.paths import ROOT
from tests.stand_ins.adapter_cases import ALPHA, CASES, make, relative

every_family = pytest.mark.parametrize(
    "family", [*FAMILIES, *(name for name in FAMILY_CATALOG if name not in FAMILIES)]
)


def uses(family: str, setting: str) -> bool:
    if family not in FAMILY_CATALOG:
        pytest.skip("first add a row to config/family_catalog.py")
    return setting in FAMILY_CATALOG[family].uses


# --- declarations -------------------------------------------------------------------------------


@every_family
def test_every_family_is_in_the_registry_and_in_the_catalogue(family: str) -> None:
    assert family in FAMILIES, "import it in adapters/registry.py, and add an instance to FAMILIES there"
    assert family in FAMILY_CATALOG, (
        "add a row to config/family_catalog.py, in the same place as in adapters/registry.py"
    )
    assert list(FAMILIES).index(family) == list(FAMILY_CATALOG).index(family), (
        "sort its row in config/family_catalog.py as in the registry"
    )


@every_family
def test_every_family_declares_the_tensors_of_its_files(family: str) -> None:
    ours = FAMILIES[family]
    declared = {name.removesuffix("?") for layout in ours.LAYOUTS for name in layout}
    assert declared == set(ours.STATE_KEYS), "declare every tensor's shape in LAYOUTS; see adapters/families/layouts.py"


@pytest.mark.parametrize("family", FAMILY_CATALOG)
def test_the_catalogue_has_only_settings_that_depend_on_the_family(family: str) -> None:
    wrong = [name for name in FAMILY_CATALOG[family].uses if name not in SELECTIVE]
    assert wrong == [], "`uses` in config/family_catalog.py is for settings in SELECTIVE"


@every_family
def test_the_catalogue_says_whether_alpha_has_an_effect(family: str) -> None:
    layer, _ = make(family, "linear")
    twice = layer.family.adjust_options(layer.base_layer, replace(layer.options, alpha=2 * ALPHA))
    changed = layer.family.diff_weight(layer.slices.fp32(), twice, base_weight(layer.base_layer))
    has_scale = relative(changed, layer.diff_weight()) > 1e-3
    assert uses(family, "alpha") == has_scale, 'correct "alpha" in `uses` of its row in config/family_catalog.py'


@every_family
def test_the_catalogue_says_whether_an_update_can_be_scaled(family: str) -> None:
    can_scale = bool(FAMILIES[family].SCALE_EXPONENTS)
    assert uses(family, "scale_weight_norms") == can_scale, (
        "declare SCALE_EXPONENTS in the family and scale_weight_norms in config/family_catalog.py, or neither of them"
    )


@every_family
@pytest.mark.parametrize("setting", ["dora", "scalar", "tucker"])
def test_a_form_in_the_catalogue_is_in_the_contract(family: str, setting: str) -> None:
    forms = [case for case in CASES.values() if case.family == family]
    is_tested = {
        "dora": any(case.is_dora for case in forms),
        "scalar": any(case.has_scalar for case in forms),
        "tucker": any(case.options.use_tucker for case in forms),
    }
    assert uses(family, setting) == is_tested[setting], (
        f"add a Case with {setting} to tests/stand_ins/adapter_cases.py, or leave it out in config/family_catalog.py"
    )


@every_family
def test_a_family_with_a_scalar_says_which_tensors_it_scales(family: str) -> None:
    assert uses(family, "scalar") == (family in LINEAR_IN), "add it to LINEAR_IN in adapters/families/scalar.py"


# --- other rooms --------------------------------------------------------------------------------


@every_family
def test_the_memory_estimate_knows_every_family(family: str) -> None:
    assert family in ESTIMATES, (
        "add how many numbers it trains and saves to ESTIMATES in runs/estimates/trained_parameters.py"
    )


@every_family
def test_every_family_has_a_name_in_kohyas_tools(family: str) -> None:
    assert family in network_kinds.NAMES, (
        "add its LoRA_type and algo, or those of the nearest one, to NAMES in formats/kohya/network_kinds.py"
    )
    gui, algo = network_kinds.NAMES[family]
    known = [network_kinds.ALGOS.get(name) for name in (gui.removeprefix("LyCORIS/").lower(), algo)]
    assert None not in known, "kohya's tools do not know these names: use those of the nearest family that they know"
    assert known[0] == known[1], "the two names are of different families"


@every_family
def test_every_family_has_a_preset(family: str) -> None:
    assert family in {preset.values["family"] for preset in FAMILY_PRESETS}, (
        "add one to FAMILY_PRESETS in config/presets.py"
    )


# --- documentation ------------------------------------------------------------------------------


@every_family
def test_the_help_of_the_setting_names_every_family(family: str) -> None:
    (help_text,) = (parameter.help for parameter in parameters_of(TrainConfig) if parameter.name == "family")
    explained = re.findall(r"(\w+(?:, \w+)*): ", help_text)  # as in "oft, boft: rotations."
    assert family in ", ".join(explained).split(", "), (
        "say in the help of `family` in config/settings/network.py what it is"
    )


@every_family
def test_the_page_on_methods_says_when_to_use_every_family(family: str) -> None:
    rows = [line for line in _read("methods.md").splitlines() if line.startswith("| `")]
    assert any(f"`{family}`" in row.split("|")[1] for row in rows), "add a row to the first table of docs/methods.md"


@every_family
def test_the_glossary_names_every_family(family: str) -> None:
    (row,) = (line for line in _read("glossary.md").splitlines() if line.startswith("| family |"))
    assert re.search(rf"\b{family}\b", row), "add it to the row `family` of docs/glossary.md"


def _read(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")
