"""Heat maps made with the host's model: under its lease, in turns, beside a run."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from lib_lora_train.adapters.files.lora_file import write_adapter
from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control, RunStoppedError
from lib_lora_train.core.errors import DataError, HostError
from lib_lora_train.models.architecture import ModelSpec
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.runs.images.heat_maps import HeatMapRequest, HeatMapResult, record_heat_maps, require_one_model
from lib_lora_train.sampling.sample import SamplingStep, sample_images
from lib_lora_train.sampling.sampler_options import SamplerOptions
from tests.stand_ins.training_parts import OneModelHost, adapted, shared_model, small_config
from tests.stand_ins.webui.worlds import WORLDS, host_in

CONFIG = TrainConfig(sample_sampler="DDIM")
PROMPT = SamplePrompt("a red fox", "", 64, 64, seed=3, steps=3, cfg=4.0)


@pytest.fixture(autouse=True)
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the models were trained on 128 px images, which is then the size in which they look at one."""
    monkeypatch.setattr(ModelSpec, "own_resolution", 128)


class Host(OneModelHost):
    """A host of one model that also loads it."""

    sampler_options = SamplerOptions()

    def load_model(self, _config: TrainConfig) -> DiffusionModel:
        return self.model


def _finished(work: Generator[Any, None, HeatMapResult]) -> tuple[HeatMapResult, list[Any]]:
    seen = []
    while True:
        try:
            seen.append(next(work))
        except StopIteration as end:
            return end.value, seen


def _record(request: HeatMapRequest, host: Any = None) -> HeatMapResult:
    used: Any = host or Host(shared_model())
    return _finished(record_heat_maps(request, used, Control()))[0]


def _lora(path: Path) -> Path:
    adapter = adapted(shared_model(), small_config(train_text_encoder=True))
    for parameters in adapter.groups.values():
        for parameter in parameters:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    write_adapter(path, adapter.state(), metadata={}, precision="fp32")
    adapter.remove()
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.effect_noise((64, 96), 80).convert("RGB").save(path)
    return path


def test_a_prompt_is_drawn_as_its_sample_is_and_has_maps(tmp_path: Path) -> None:
    [sample] = sample_images(shared_model(), [PROMPT], sampler="DDIM", clip_skip=1)
    drawn = _record(HeatMapRequest(CONFIG, prompt=PROMPT))
    assert drawn.image.tobytes() == sample.tobytes()
    with_lora = _record(HeatMapRequest(CONFIG, prompt=PROMPT, lora=_lora(tmp_path / "a.safetensors")))
    assert with_lora.image.tobytes() != sample.tobytes()
    maps = [one.attention.heat_map("fox").values for one in (drawn, with_lora)]
    assert maps[0].shape == (64, 64) and not torch.allclose(maps[0], maps[1], atol=0.05)


def test_an_image_has_maps_of_its_size_with_and_without_a_lora(tmp_path: Path, image: Path) -> None:
    plain = _record(HeatMapRequest(CONFIG, text="a fox", image=image)).attention.heat_map("fox").values
    lora = _lora(tmp_path / "a.safetensors")
    changed = _record(HeatMapRequest(CONFIG, text="a fox", image=image, lora=lora)).attention.heat_map("fox").values
    again = _record(HeatMapRequest(CONFIG, text="a fox", image=image)).attention.heat_map("fox").values
    assert plain.shape == (96, 64)
    assert not torch.allclose(plain, changed, atol=0.05) and torch.equal(plain, again)


@pytest.mark.parametrize("has_image", [True, False])
def test_the_adapter_of_a_run_takes_no_part_and_is_left_as_it_is(tmp_path: Path, image: Path, has_image: bool) -> None:
    what: dict[str, Any] = {"text": "a fox", "image": image} if has_image else {"prompt": PROMPT}
    request = HeatMapRequest(CONFIG, lora=_lora(tmp_path / "a.safetensors"), **what)
    requests = (request, HeatMapRequest(CONFIG, **what))
    expected = [_record(one).attention.heat_map("fox").values for one in requests]
    run = adapted(shared_model(), small_config())
    try:
        for parameter in run.groups["unet"]:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(5))
        state = run.state()
        names = [name for name, _ in shared_model().unet.named_modules()]
        found = [_record(one).attention.heat_map("fox").values for one in requests]
        assert names == [name for name, _ in shared_model().unet.named_modules()]
        assert all(torch.equal(value, run.state()[key]) for key, value in state.items())
    finally:
        run.remove()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_drawing_returns_the_model_after_every_step_while_somebody_waits() -> None:
    host: Any = Host(shared_model(), wanted=True)
    _, seen = _finished(record_heat_maps(HeatMapRequest(CONFIG, prompt=PROMPT), host, Control()))
    assert [one.step for one in seen if isinstance(one, SamplingStep)] == [1, 2, 3]
    assert host.turns > PROMPT.steps and not host.is_leased


def test_drawing_stops_after_the_current_step() -> None:
    host: Any = Host(shared_model(), wanted=True)
    control = Control()
    work = record_heat_maps(HeatMapRequest(CONFIG, prompt=PROMPT), host, control)
    next(work)
    control.stop()
    with pytest.raises(RunStoppedError):
        list(work)
    assert not host.is_leased
    assert not any(module._forward_hooks for module in shared_model().unet.modules())


def test_a_word_that_is_missing_is_reported_before_anything_is_drawn() -> None:
    host = Host(shared_model())
    with pytest.raises(DataError, match="“dog” is not in the prompt"):
        _record(HeatMapRequest(CONFIG, prompt=PROMPT, words=("fox", "dog")), host)
    assert host.turns == 0


def test_another_model_is_not_loaded_beside_a_run() -> None:
    def host(*, is_loaded: bool) -> Any:
        return SimpleNamespace(run_target=lambda _: SimpleNamespace(is_loaded=is_loaded))

    require_one_model(host(is_loaded=False), CONFIG, "")
    require_one_model(host(is_loaded=True), CONFIG, "run")
    with pytest.raises(HostError, match=r"run is training, and heat maps .* need another model"):
        require_one_model(host(is_loaded=False), CONFIG, "run")


@pytest.mark.parametrize("name", ["a1111", "forge", "reforge"])
def test_in_a_webui_the_maps_are_made_on_its_own_weights_which_are_left_as_they_were(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image: Path
) -> None:
    monkeypatch.setattr("lib_lora_train.training.wait_for_model._RETRY_SECONDS", 0.01)
    host = host_in(WORLDS[name](monkeypatch, tmp_path / "Lora"))
    with host.lease() as model:
        before = {key: value.clone() for key, value in model.unet.state_dict().items()}
    result = _record(HeatMapRequest(CONFIG, text="a fox", image=image), host)
    _, seen = _finished(record_heat_maps(HeatMapRequest(CONFIG, prompt=PROMPT), host, Control()))
    assert result.attention.heat_map("fox").values.shape == (96, 64)
    assert len([one for one in seen if isinstance(one, SamplingStep)]) == PROMPT.steps
    with host.lease() as model:
        assert all(torch.equal(value, before[key]) for key, value in model.unet.state_dict().items())
