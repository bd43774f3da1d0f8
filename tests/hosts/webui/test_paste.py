"""A text of ours that is pasted into txt2img changes what it names, and no other option of the webui."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.hosts.webui.options import keep_unnamed_options
from lib_lora_train.sampling.infotext import infotext, sample_settings, xyz_infotext
from lib_lora_train.sampling.used_sampler import UsedSampler
from tests.stand_ins.webui.infotext import OPTIONS, add_options, overridden, overrides, parse, paste
from tests.stand_ins.webui.modules import install, module_of
from tests.stand_ins.webui.settings import shared_module

EULER = UsedSampler("Euler")
PROMPT = SamplePrompt("(zok:1.2), a fox", "blurry", 128, 192, 9, 12, 3.5)
TEXTS = {
    "use": "zok <lora:zok:1>\nNegative prompt: blurry\n" + sample_settings(PROMPT, sampler=EULER, clip_skip=1),
    "plot": xyz_infotext(PROMPT, ("zok-1", "zok-2"), (9, 10), sampler=EULER, clip_skip=1),
}
OTHER_VALUES = {"Clip skip": 2, "RNG": "CPU", "Schedule rho": 3.0, "FP8 weight": "Enable"}


@pytest.fixture
def opts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The options of a webui whose user changed every one of them."""
    shared = shared_module(tmp_path)
    install(monkeypatch, module_of("modules"), shared)
    add_options(shared.opts)
    for name, (label, default) in OPTIONS.items():
        setattr(shared.opts, name, OTHER_VALUES.get(label, True if default is False else "TAESD"))
    return shared.opts


@pytest.mark.parametrize("kind", TEXTS)
def test_pasting_overrides_only_the_options_that_are_named(opts: Any, kind: str) -> None:
    assert set(overrides(parse(TEXTS[kind]), opts)) == {label for label, _ in OPTIONS.values()}, "the trap"
    values, changed = paste(TEXTS[kind], opts, keep_unnamed_options)
    assert changed == {"Clip skip": "1"}
    assert (values["Size-1"], values["Size-2"], values["Steps"], values["Sampler"]) == ("128", "192", "12", "Euler")
    assert values["CFG scale"] == "3.5" and values["Negative prompt"] == "blurry"


@pytest.mark.parametrize("kind", TEXTS)
def test_an_overridden_option_is_restored_even_if_it_was_never_set(opts: Any, kind: str) -> None:
    """Webuis restore, after an image, only those of the overridden options that are in their saved data."""
    opts.data.clear()
    before = {name: getattr(opts, name) for name in OPTIONS}
    values, _ = paste(TEXTS[kind].replace("Clip skip: 1", "Clip skip: 2"), opts, keep_unnamed_options)
    with overridden(opts, overrides(values, opts)):
        assert opts.CLIP_stop_at_last_layers == 2
    assert {name: getattr(opts, name) for name in OPTIONS} == before


@pytest.mark.parametrize(
    "text",
    [
        infotext(PROMPT, sampler=EULER, clip_skip=1, model="tiny"),
        "a fox\nSteps: 20, Sampler: Euler, CFG scale: 7, Size: 64x64",
        "a fox",
        "",
    ],
)
def test_infotexts_of_images_are_read_as_ever(opts: Any, text: str) -> None:
    values = parse(text)
    before = dict(values)
    keep_unnamed_options(text, values)
    assert values == before
