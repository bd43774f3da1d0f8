"""An adapter in the form that a webui reads has exactly the effect that was trained."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.files.decode import parse_state
from lib_lora_train.adapters.inject import inject_parsed
from lib_lora_train.adapters.readable import (
    count_file_values,
    form_of_layer,
    layers_to_rewrite,
    rewrite_adapter,
)
from lib_lora_train.adapters.registry import FAMILIES, AdapterSpec
from lib_lora_train.config.family_support import FORMS, WEBUIS, is_misread, readable_form
from tests.stand_ins.adapters_model import tiny_model, trained

PROGRAMS = (*WEBUIS, "Forge Neo 2.26", "stand-alone")
SPECS: Mapping[str, AdapterSpec] = {
    **{family: AdapterSpec(family, 4, 2.0, targets="all") for family in FAMILIES},
    # Families that need other settings here, and all further forms.
    "lora with a core": AdapterSpec("lora", 2, 1.0, targets="all", options=Options(use_tucker=True)),
    "dora": AdapterSpec("lora", 2, 1.0, targets="all", is_dora=True),
    "lokr": AdapterSpec("lokr", 2, 1.0, targets="all", options=Options(factor=4)),
    "lokr with a core": AdapterSpec("lokr", 2, 1.0, targets="all", options=Options(factor=4, use_tucker=True)),
    "lokr with a core, both": AdapterSpec(
        "lokr", 1, 3.0, targets="all", options=Options(factor=4, use_tucker=True, decompose_both=True)
    ),
    "lokr with a core, scalar": AdapterSpec(
        "lokr", 2, 1.0, targets="all", has_scalar=True, options=Options(factor=4, use_tucker=True)
    ),
    "oft, bounded": AdapterSpec("oft", 4, targets="all", options=Options(constraint=0.01)),
    "oft, rescaled": AdapterSpec("oft", 4, targets="all", options=Options(rescaled=True)),
    "oft, both": AdapterSpec("oft", 4, targets="all", options=Options(constraint=0.01, rescaled=True)),
    "boft, bounded": AdapterSpec("boft", 4, targets="all", options=Options(constraint=0.01)),
    "boft, both": AdapterSpec("boft", 4, targets="all", options=Options(constraint=0.01, rescaled=True)),
    "norms too": AdapterSpec("ia3", 4, targets="all", train_norm=True),
}
ROUNDING = 1e-5  # relative: sums of fp32 numbers in another order


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("name", SPECS)
def test_a_rewritten_file_has_the_trained_effect_and_is_read(name: str, program: str) -> None:
    model = tiny_model()
    adapter = trained(model, SPECS[name])
    expected, forms = model.predict().detach(), {form_of_layer(layer) for layer in adapter.layers.values()}
    rewritten = layers_to_rewrite(adapter.layers, program)
    values = count_file_values(adapter.layers, program)
    turns: list[int] = []
    converted = rewrite_adapter(adapter.layers, program, "fp32", after_layer=lambda: turns.append(1))
    adapter.remove()
    assert bool(rewritten) == any(is_misread(program, form) for form in forms)
    assert len(turns) == len(adapter.layers), "others can use the model between two layers"
    assert converted.error < ROUNDING and not converted.left_out
    if set(rewritten.values()) <= {"full"}:  # small forms are about as large as what was trained
        assert values == sum(tensor.numel() for tensor in converted.state.values())
    again, unmatched = inject_parsed(model, parse_state(converted.state))
    assert not unmatched
    assert not any(is_misread(program, form_of_layer(layer)) for layer in again.layers.values())
    torch.testing.assert_close(model.predict(), expected, rtol=0.0, atol=ROUNDING * float(expected.abs().max()))


@pytest.mark.parametrize("name", SPECS)
def test_layers_that_the_webui_reads_are_written_as_they_are(name: str) -> None:
    adapter = trained(tiny_model(), SPECS[name])
    state = adapter.state()
    converted = rewrite_adapter(adapter.layers, "Forge Neo 2.26", "fp32", after_layer=lambda: None)
    rewritten = layers_to_rewrite(adapter.layers, "Forge Neo 2.26")
    for key, tensor in state.items():
        if key.partition(".")[0] not in rewritten:
            assert torch.equal(converted.state[key], tensor)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("form", FORMS)
def test_the_form_that_is_written_is_never_misread(form: str, program: str) -> None:
    assert not is_misread(program, readable_form(program, form))


def test_lokr_with_a_core_stays_small() -> None:
    """A full difference of SDXL takes gigabytes, so it is written only where nothing else can hold the update."""
    for program in ("Forge", "Forge Neo 2.26", "reForge", "Forge Classic"):
        adapter = trained(tiny_model(), SPECS["lokr with a core"])
        assert set(layers_to_rewrite(adapter.layers, program).values()) == {"lokr"}
    for form in ("ia3", "oft", "boft"):
        assert readable_form("Forge", form) == "full"
