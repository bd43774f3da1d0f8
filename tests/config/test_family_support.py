"""One table says what each program does with each form of LoRA file; page, warnings and buttons are made from it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from lib_lora_train.config.family_catalog import FAMILY_CATALOG
from lib_lora_train.config.family_support import (
    FORMS,
    PROGRAMS,
    SUPPORT,
    WEBUIS,
    bad_webuis,
    conversions_for,
    form_of,
    support_of,
)
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.runs.checks.form_check import form_problems


def test_the_docs_page_is_the_table() -> None:
    tool: Any = importlib.import_module("tools.make_family_page")
    assert tool.PAGE.read_text(encoding="utf-8") == tool.family_page(), "run python -m tools.make_family_page"


def test_every_cell_is_of_a_known_program_and_form() -> None:
    assert tuple(SUPPORT) == PROGRAMS and {form for cells in SUPPORT.values() for form in cells} <= set(FORMS)
    assert set(FAMILY_CATALOG) <= set(FORMS)


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ({"family": "lora", "targets": "attention"}, "lora"),
        ({"family": "lora", "targets": "all"}, "locon"),
        ({"family": "lora", "targets": "attention", "tucker": True}, "lora"),
        ({"family": "lora", "targets": "all", "tucker": True}, "locon_tucker"),
        ({"family": "lokr", "targets": "all", "tucker": True}, "lokr_tucker"),
        ({"family": "lokr", "dora": True}, "lokr_dora"),
        ({"family": "lokr", "full_matrix": True}, "lokr_full"),
        ({"family": "oft"}, "oft"),
        ({"family": "oft", "constraint": 0.1}, "oft_constraint"),
        ({"family": "boft", "rescaled": True}, "boft_rescaled"),
        ({"family": "full", "train_norm": True}, "full_norm"),
    ],
)
def test_settings_have_the_form_that_was_measured(values: dict[str, Any], form: str) -> None:
    assert form_of(TrainConfig(**values)) == form


@pytest.mark.parametrize("family", sorted(FAMILY_CATALOG))
def test_every_family_has_a_form(family: str) -> None:
    assert form_of(TrainConfig(family=family)) in FORMS


@pytest.mark.parametrize("family", [*FAMILY_CATALOG, "ours"])
def test_settings_that_do_not_fit_a_family_leave_it_its_form(family: str) -> None:
    """They are refused elsewhere, with a sentence; a new family has no variants."""
    known = {*FORMS, "ours"}
    for values in ({"dora": True}, {"tucker": True, "targets": "all"}, {"scalar": True}, {"full_matrix": True}):
        assert form_of(TrainConfig(family=family, **values)) in known


@pytest.mark.parametrize("form", FORMS)
def test_a_warning_names_every_webui_that_misreads_the_file(form: str) -> None:
    values: dict[str, Any] = {"family": form.partition("_")[0]}
    if "_" in form:
        values |= {"constraint": 0.1} if "constraint" in form else {"rescaled": True} if "rescaled" in form else {}
    if form == "lokr_tucker":
        values |= {"tucker": True, "targets": "all"}
    if values["family"] not in FAMILY_CATALOG or form_of(TrainConfig(**values)) != form:
        return
    problems = form_problems(TrainConfig(**values), "")
    text = " ".join(p.message for p in problems if "not read correctly everywhere" in p.message)
    assert all(name in text for name, _ in bad_webuis(form))
    assert bool(text) == bool(tuple(bad_webuis(form)))


@pytest.mark.parametrize(
    ("host", "form", "converts"),
    [
        ("Forge Neo 2.26", "oft", True),
        ("Forge", "oft", True),
        ("Forge Neo 2.26", "oft_constraint", True),
        ("Forge Neo 2.26", "ia3", True),
        ("AUTOMATIC1111", "ia3", False),
        ("stand-alone", "ia3", True),
        ("Forge Classic", "ia3", True),
        ("Forge Neo 2.26", "lora", False),
    ],
)
def test_a_file_is_offered_for_conversion_where_the_host_misreads_it(host: str, form: str, converts: bool) -> None:
    assert conversions_for(host, form) == (("diff", "lora") if converts else ())


def test_what_files_are_converted_to_is_read_by_every_measured_webui() -> None:
    for name in WEBUIS:
        assert not any(support_of(name, form).is_known_bad for form in ("full", "lora", "locon"))
