"""Training inside a webui: turns under its lock, pristine weights, models that come and go."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from lib_lora_train.adapters.inject import Adapter
from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import HostError, ModelAwayError, ModelError
from lib_lora_train.core.events import Event, StateChanged, StepDone
from lib_lora_train.hosts.host import Host
from lib_lora_train.hosts.webui.detect import detect_host
from lib_lora_train.hosts.webui.forge import Forge
from lib_lora_train.hosts.webui.host import WebuiHost
from lib_lora_train.hosts.webui.options import noise_source
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.fp8 import is_eight_bit
from lib_lora_train.sampling.sample import draw_samples
from lib_lora_train.sampling.sampler_options import SamplerOptions
from lib_lora_train.training.control import Control
from lib_lora_train.training.lease import Breathe, leased_with_yields
from lib_lora_train.training.loop import train
from tests.stand_ins.tiny_models import tiny_tensors, write_tiny_checkpoint
from tests.stand_ins.training_parts import small_config, started
from tests.stand_ins.webui import (
    EDM,
    EPS,
    V_PREDICTION,
    WORLDS,
    A1111World,
    ClassicWorld,
    ForgeWorld,
    ReforgeWorld,
    World,
    host_in,
)

T = TypeVar("T")


@pytest.fixture(params=["a1111", "forge", "reforge"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    monkeypatch.setattr("lib_lora_train.training.wait_for_model._LOOK_AGAIN_SECONDS", 0.01)
    return WORLDS[request.param](monkeypatch, tmp_path / "Lora")


@pytest.fixture
def host(world: World) -> WebuiHost:
    return host_in(world)


def trained(host: Any, *, during: Any = lambda event: None, control: Control | None = None) -> tuple[Any, list[Event]]:
    """The numbers of a LoRA trained for eight steps, and all events; `during` is called with each of them."""
    model = host.load_model(TrainConfig())
    with host.lease(model):
        training = started(model, small_config())
    events = []
    try:
        for event in train(training, host=host, control=control or Control()):
            events.append(event)
            during(event)
        return training.adapter.state(), events
    finally:
        training.adapter.remove()


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_it_is_a_host(host: WebuiHost, tmp_path: Path) -> None:
    lender: Host = host
    assert lender.lora_dir == tmp_path / "Lora"


def test_the_webuis_weights_are_shared_not_copied(world: World, host: WebuiHost) -> None:
    model = host.load_model(TrainConfig())
    assert not [row for row in model.report if row.status == "copied"]
    with host.lease(model):
        theirs = {p.untyped_storage().data_ptr() for p in parameters_of(world)}
        ours = {p.untyped_storage().data_ptr() for p in model.unet.parameters()}
        assert ours <= theirs
        assert not any(p.requires_grad or p.is_inference() for p in model.unet.parameters())
    assert (model.name, model.device.type, model.spec.scale_factor) == ("checkpoint-0", "cpu", 0.18215)


def test_the_footing_is_told_without_lock_or_loading(world: World, host: WebuiHost, tmp_path: Path) -> None:
    empty = host.footing(TrainConfig())
    if isinstance(world, A1111World):
        assert empty.is_loaded
    else:
        assert (empty.checkpoint, empty.is_loaded) == (None, False), "Forge loads nothing before the first use"
    with host.lease() as model:  # the lock is taken: asking must not wait for it
        footing = host.footing(TrainConfig())
    assert (footing.checkpoint, footing.is_loaded) == (model.path, True)
    assert (footing.number_bytes, footing.device, footing.card) == (4, "cpu", None)
    other = host.footing(TrainConfig(checkpoint=str(tmp_path / "other.safetensors")))
    assert (other.checkpoint, other.is_loaded) == (tmp_path / "other.safetensors", False)
    assert not host.footing(TrainConfig(precision="fp16")).is_loaded, "a precision of one's own is a copy"
    assert not host.footing(TrainConfig(vae=str(tmp_path / "other-vae.safetensors"))).is_loaded


def parameters_of(world: World) -> Iterator[Tensor]:
    modules = [world.model] if isinstance(world, A1111World) else world.parts
    return (parameter for module in modules for parameter in module.parameters())


def test_between_turns_nothing_of_the_webuis_memory_is_held(world: World, host: WebuiHost) -> None:
    model = host.load_model(TrainConfig())
    modules = (model.unet, model.vae, *model.text_encoders)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    assert all(parameter.untyped_storage().nbytes() == 0 for parameter in parameters)


def test_16_bit_text_encoders_are_converted_once_for_all_turns(world: World, host: WebuiHost) -> None:
    """As Forge has them on the processor; a generation with a LoRA renews or changes them between the turns."""
    world.generate()
    for parameter in text_parameters(world):
        parameter.data = parameter.data.half()
    model = host.load_model(TrainConfig())
    (encoder,) = model.text_encoders
    expected = [parameter.clone() for parameter in encoder.parameters()]
    places = [parameter.data_ptr() for parameter in encoder.parameters()]
    theirs = {parameter.data_ptr() for parameter in text_parameters(world)}
    assert theirs.isdisjoint(places) and not any(p.numel() for p in (*model.unet.parameters(), *model.vae.parameters()))
    world.generate("style")
    with host.lease(model):
        assert [parameter.data_ptr() for parameter in encoder.parameters()] == places
        assert all(torch.equal(p, kept) for p, kept in zip(encoder.parameters(), expected, strict=True))
        assert digest(encoder.parameters()) == digest(parameter.float() for parameter in text_parameters(world))


def digest(parameters: Iterable[Tensor]) -> list[float]:
    """Every parameter's sum of squares, in order of size: the webuis keep them in another order than we do."""
    return sorted(float((parameter.detach().double() ** 2).sum()) for parameter in parameters)


def text_parameters(world: World) -> Iterator[Tensor]:
    text = world.model.cond_stage_model if isinstance(world, A1111World) else world.parts[1]
    parameters: Iterator[Tensor] = text.parameters()
    return parameters


def test_a_training_leaves_every_byte_of_the_webui_as_it_was(world: World, host: WebuiHost) -> None:
    image, styled = world.generate(), world.generate("style")
    world.generate()
    flags = [p.requires_grad for p in parameters_of(world)]
    trained(host)
    assert [p.requires_grad for p in parameters_of(world)] == flags
    assert world.weights() == image
    assert (world.generate("style"), world.generate()) == (styled, image) and image != styled


def test_generating_with_loras_between_turns_changes_neither_images_nor_training(world: World, host: WebuiHost) -> None:
    alone, _ = trained(host)
    expected = {name: world.generate(name) for name in ("style", "other", "")}
    images: list[tuple[str, str]] = []

    def generate(event: Event) -> None:
        if isinstance(event, StepDone):
            name = ("style", "other", "")[event.step % 3]
            images.append((name, world.generate(name)))
            world.unload()

    together, _ = trained(host, during=generate)
    assert len(images) == 8 and all(expected[name] == image for name, image in images)
    assert same(together, alone)


def test_a_lora_that_was_left_in_the_weights_is_taken_out_first(world: World, host: WebuiHost) -> None:
    alone, _ = trained(host)
    world.generate("style")
    again, _ = trained(host)
    assert same(again, alone)


class Passers:
    """Inside, somebody waits to generate in the midst of each of the UNet's answers."""

    def __init__(self, world: World) -> None:
        self.images: list[str] = []
        self._world, self._threads = world, list[threading.Thread]()

    def __enter__(self) -> Passers:
        self._hook = register_module_forward_pre_hook(self._come)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()
        for thread in self._threads:
            thread.join()

    def _come(self, module: nn.Module, _arguments: object) -> None:
        lock = self._world.queue_lock
        if not isinstance(module, UNet2DConditionModel) or lock._pending_threads:
            return
        self._threads.append(threading.Thread(target=lambda: self.images.append(self._world.generate("style"))))
        self._threads[-1].start()
        while not lock._pending_threads:
            time.sleep(0.001)


def test_generations_go_first_while_training_runs(
    world: World, host: WebuiHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the midst of each step a generation waits: the turn ends with that step, and every image is right."""
    expected = world.generate("style")
    leases = leases_of(host, monkeypatch)
    with Passers(world) as passers:
        _, events = trained(host)
    steps = sum(isinstance(event, StepDone) for event in events)
    assert passers.images == [expected] * steps
    assert len(leases) >= steps, "one turn for each step"


def test_generations_go_first_while_samples_are_drawn(
    world: World, host: WebuiHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the midst of each of the UNet's answers one waits: it goes before the next answer, and harms no sample."""
    model, control = host.load_model(TrainConfig()), Control()
    prompts = [SamplePrompt("a fox", "", 64, 64, seed=3, steps=3, cfg=3.0)]

    def draw(lent: DiffusionModel, breathe: Breathe) -> bytes:
        count = lambda _done, _total: breathe()  # noqa: E731
        return draw_samples(lent, prompts, sampler="Euler", clip_skip=1, on_progress=count)[0].tobytes()

    alone = ended(leased_with_yields(host, model, control, draw))
    expected = world.generate("style")
    leases = leases_of(host, monkeypatch)
    with Passers(world) as passers:
        among = ended(leased_with_yields(host, model, control, draw))
    assert among == alone
    assert passers.images == [expected] * 3 and len(leases) == 1 + 3


def leases_of(host: WebuiHost, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows with each lease from now on."""
    lease, taken = host.lease, list[Any]()

    def counted(*arguments: Any) -> Any:
        taken.append(arguments)
        return lease(*arguments)

    monkeypatch.setattr(host, "lease", counted)
    return taken


def ended(events: Generator[Event, None, T]) -> T:
    """What comes of a piece of work that tells nothing."""
    with pytest.raises(StopIteration) as end:
        next(events)
    result: T = end.value.value
    return result


# --- models that come and go ----------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [False, True])
def test_another_checkpoint_makes_the_run_wait_until_its_own_is_back(
    world: World, host: WebuiHost, in_place: bool
) -> None:
    """A1111 writes a checkpoint of the same kind over the old one's storage; Forge always makes a new model."""
    if in_place and isinstance(world, ForgeWorld):
        pytest.skip("Forge never loads a checkpoint in place")
    alone, _ = trained(host)
    told: list[StateChanged] = []
    moves = iter([5, 0])

    def switch(event: Event) -> None:
        if isinstance(event, StateChanged):
            told.append(event)
        if (isinstance(event, StepDone) and event.step == 1) or (told and told[-1].state == "waiting"):
            world.switch_to(next(moves), in_place=in_place)

    together, _ = trained(host, during=switch)
    assert [event.state for event in told] == ["waiting", "running"]
    assert "checkpoint-5 is loaded now" in told[0].message and "checkpoint-0" in told[0].message
    assert same(together, alone)


def test_a_model_that_could_not_be_loaded_makes_the_run_wait(world: World, host: WebuiHost) -> None:
    model = host.load_model(TrainConfig())
    kept, world.model_data.sd_model = world.model_data.sd_model, None
    with pytest.raises(ModelAwayError, match="No model is loaded now"), host.lease(model):
        pass
    world.model_data.sd_model = kept
    with host.lease(model) as lent:
        assert lent is model


def test_the_same_model_value_is_lent_throughout(host: WebuiHost) -> None:
    model = host.load_model(TrainConfig())
    with host.lease(model) as first:
        assert first is model and first.unet.conv_in.weight.numel()
    with host.lease() as fresh:
        assert fresh is not model and torch.isfinite(fresh.unet.conv_in.weight).all()


def test_what_the_user_says_of_the_loaded_model_counts(host: WebuiHost) -> None:
    """And the value is still the webui's model, lent in turns with its weights."""
    told = host.load_model(TrainConfig(prediction_type="v_prediction", zero_terminal_snr="on"))
    assert (told.spec.prediction_type, told.spec.zero_terminal_snr) == ("v_prediction", True)
    assert float(told.schedule.alphas_cumprod[-1]) == pytest.approx(0.0, abs=1e-12)
    with host.lease(told) as lent:
        assert lent is told
        assert lent.unet.conv_in.weight.numel() > 0


def test_a_lease_inside_a_lease_is_refused_instead_of_hanging(host: WebuiHost) -> None:
    with host.lease(), pytest.raises(HostError, match="already leased"), host.lease():
        pass


# --- the copy path --------------------------------------------------------------------------------


def test_another_file_is_read_and_trained_without_touching_the_webui(
    world: World, host: WebuiHost, tmp_path: Path
) -> None:
    write_tiny_checkpoint(tmp_path / "mine.safetensors", "sd1", seed=3)
    world.generate()
    before = world.weights()
    model = host.load_model(TrainConfig(checkpoint=str(tmp_path / "mine.safetensors")))
    assert model.name == "mine" and "not the one the webui has loaded" in model.note and "MiB" in model.note
    world.switch_to(5)
    with host.lease(model) as lent:  # whatever the webui loads meanwhile
        name = "model.diffusion_model.input_blocks.0.0.weight"
        assert torch.equal(lent.unet.conv_in.weight, tiny_tensors("sd1", seed=3)[name].half().float())
    world.switch_to(0)
    assert world.weights() == before


def test_weights_that_cannot_be_shared_are_read_from_the_file(
    world: World, host: WebuiHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint-0.safetensors"
    write_tiny_checkpoint(path, "sd1", seed=0)
    world.generate()
    world.model.sd_checkpoint_info.filename = str(path)
    for parameter in list(parameters_of(world))[:1]:
        parameter.data = parameter.data.to(torch.float8_e4m3fn)
    model = host.load_model(TrainConfig())
    assert "the webui keeps the weights as float8_e4m3fn" in model.note
    assert model.dtype == torch.float32


def test_precision_of_ones_own_is_a_copy(world: World, host: WebuiHost, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-0.safetensors"
    write_tiny_checkpoint(path, "sd1", seed=0)
    world.generate()
    world.model.sd_checkpoint_info.filename = str(path)
    model = host.load_model(TrainConfig(precision="bf16"))
    assert "precision of their own" in model.note and model.dtype == torch.bfloat16
    model = host.load_model(TrainConfig(precision="bf16", fp8_base=True))
    assert "precision of their own" in model.note and "stored in 8 bit" in model.note


def test_the_webuis_own_weights_are_never_stored_anew(world: World, host: WebuiHost) -> None:
    world.generate()
    model = host.load_model(TrainConfig(fp8_base=True))
    assert "fp8_base has no effect" in model.note
    assert not any(is_eight_bit(layer) for layer in model.unet.modules())


@pytest.mark.parametrize(
    ("source", "device", "expected"),
    [
        ("GPU", "cuda", "cuda"),
        ("CPU", "cuda", "cpu"),
        ("NV", "cuda", "philox"),
        ("NV", "mps", "philox"),
        ("GPU", "mps", "cpu"),
        (None, "cuda", "cuda"),
    ],
)
def test_noise_is_drawn_where_the_webui_draws_it(source: str | None, device: str, expected: str) -> None:
    options = SimpleNamespace() if source is None else SimpleNamespace(randn_source=source)
    assert str(noise_source(SimpleNamespace(opts=options), torch.device(device))) == expected


def test_forge_draws_noise_on_the_processor_to_reproduce_others() -> None:
    options = SimpleNamespace(randn_source="NV", forge_try_reproduce="ComfyUI")
    assert noise_source(SimpleNamespace(opts=options), torch.device("cuda")) == torch.device("cpu")


@pytest.mark.parametrize("world", WORLDS, indirect=True)
def test_samples_are_drawn_as_the_webuis_settings_and_ways_have_it(world: World, host: WebuiHost) -> None:
    """Forge and its relatives ask the UNet at whole timesteps; Classic leaves the guidance out of the first step."""
    usual = SamplerOptions(torch.device("cpu"), has_whole_timesteps=not isinstance(world, A1111World))
    if isinstance(world, ClassicWorld):
        usual = replace(usual, unguided_share=0.0)
    assert host.sampler_habits == usual
    set_in(sys.modules["modules.shared"], eta_noise_seed_delta=31337, eta_ancestral=0.5, eta_ddim=0.2)
    set_in(sys.modules["modules.shared"], skip_early_cond=0.25, enable_quantization=True)
    assert host.sampler_habits == SamplerOptions(torch.device("cpu"), 31337, 0.5, 0.2, True, 0.25)


def set_in(shared: Any, **options: Any) -> None:
    for name, value in options.items():
        setattr(shared.opts, name, value)


# --- results and detection ------------------------------------------------------------------------


def test_new_files_are_shown_by_the_webui(world: World, host: WebuiHost) -> None:
    host.show_loras()
    assert world.listed == 1


@pytest.mark.parametrize("world", WORLDS, indirect=True)
def test_the_webui_is_known_by_what_it_can_do(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        A1111World: ("AUTOMATIC1111", "modules"),
        ForgeWorld: ("Forge", "backend.diffusion_engine.base"),
        ReforgeWorld: ("reForge", "ldm_patched.modules.model_management"),
        ClassicWorld: ("Forge Classic", "ldm_patched.modules.model_management"),
    }
    name, module = found[type(world)]
    monkeypatch.setattr("lib_lora_train.hosts.webui.detect._has", {module}.__contains__)
    if name == "Forge Classic":
        monkeypatch.setattr("lib_lora_train.hosts.webui.detect._forge_version", lambda: "classic")
    assert detect_host().name == name


def test_forge_neo_is_refused_with_a_reason(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib_lora_train.hosts.webui.detect._has", lambda name: name.startswith("backend"))
    monkeypatch.setattr("lib_lora_train.hosts.webui.detect._forge_version", lambda: "neo")
    with pytest.raises(HostError, match="Neo is not supported yet"):
        detect_host()


def test_an_adapter_stays_on_the_model_while_its_weights_move(world: World, host: WebuiHost) -> None:
    model = host.load_model(TrainConfig())
    with host.lease(model):
        training = started(model, small_config())
    adapter: Adapter = training.adapter
    try:
        world.unload()
        with host.lease(model) as lent:
            layer = next(iter(adapter.layers.values()))
            theirs = {p.untyped_storage().data_ptr() for p in parameters_of(world)}
            weight: Tensor = layer.base_layer.weight  # type: ignore[assignment]
            assert lent is model and weight.untyped_storage().data_ptr() in theirs
    finally:
        adapter.remove()


# --- what single webuis do ------------------------------------------------------------------------


def test_on_forge_a_vae_that_is_only_chosen_does_not_stop_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The drop-down changes what the next generation loads, not what is loaded."""
    world = ForgeWorld(monkeypatch, tmp_path / "Lora")
    host = host_in(world)
    model = host.load_model(TrainConfig())
    world.choose(0, vae="/models/VAE/other.safetensors")
    with host.lease(model) as lent:
        assert lent is model
    world.generate()
    with pytest.raises(ModelAwayError, match="with its VAE"), host.lease(model):
        pass
    world.choose(0)
    world.generate()
    with host.lease(model) as lent:
        assert lent is model


def test_on_forge_a_loaded_vae_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = ForgeWorld(monkeypatch, tmp_path / "Lora")
    world.choose(0, vae="/models/VAE/it's [new].safetensors")
    world.generate()
    present = Forge().present()
    assert present is not None and present.vae == Path("/models/VAE/it's [new].safetensors")


@pytest.mark.parametrize(("kind", "expected"), [(EPS, "epsilon"), (V_PREDICTION, "v_prediction")])
def test_on_reforge_the_schedules_class_tells_what_is_predicted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: type, expected: str
) -> None:
    monkeypatch.setattr(ReforgeWorld, "prediction", kind)
    model = host_in(ReforgeWorld(monkeypatch, tmp_path / "Lora")).load_model(TrainConfig())
    assert (model.spec.prediction_type, model.schedule.prediction_type) == (expected, expected)


def test_on_reforge_other_predictions_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ReforgeWorld, "prediction", EDM)
    with pytest.raises(ModelError, match="predicts EDM"):
        host_in(ReforgeWorld(monkeypatch, tmp_path / "Lora")).load_model(TrainConfig())
