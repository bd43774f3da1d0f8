"""Training inside a webui: leases under its lock, weights without LoRAs, checkpoints that change meanwhile."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from functools import cache
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
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import HostError, ModelError, ModelUnavailableError
from lib_lora_train.core.events import Event, StateChanged, StepDone
from lib_lora_train.hosts.host import Host
from lib_lora_train.hosts.webui.detect import detect_host
from lib_lora_train.hosts.webui.forge import Forge
from lib_lora_train.hosts.webui.host import WebuiHost
from lib_lora_train.hosts.webui.sampling_settings import noise_source
from lib_lora_train.models.fp8 import is_fp8
from lib_lora_train.sampling.sample import sample_in_steps
from lib_lora_train.sampling.sampler_options import SamplerOptions
from lib_lora_train.training.lease import run_in_turns
from lib_lora_train.training.loop import train
from tests.stand_ins.tiny_models import alphas_of, tiny_tensors, write_tiny_checkpoint
from tests.stand_ins.training_parts import small_config, started
from tests.stand_ins.webui.a1111 import A1111World
from tests.stand_ins.webui.forge import ForgeWorld
from tests.stand_ins.webui.neo import NeoWorld
from tests.stand_ins.webui.reforge import EDM, EPS, V_PREDICTION, ClassicWorld, ReforgeWorld
from tests.stand_ins.webui.worlds import WORLDS, World, host_in

T = TypeVar("T")


@pytest.fixture(params=["a1111", "forge", "neo", "reforge"])
def world_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world(world_name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    monkeypatch.setattr("lib_lora_train.training.wait_for_model._RETRY_SECONDS", 0.01)
    return WORLDS[world_name](monkeypatch, tmp_path / "Lora")


@pytest.fixture
def host(world: World) -> WebuiHost:
    return host_in(world)


def trained(host: Any, *, during: Any = lambda event: None, control: Control | None = None) -> tuple[Any, list[Event]]:
    """The weights of a LoRA trained for eight steps, and all events; `during` is called with each event."""
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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Tensor]]:
    """By a world's name: the LoRA of a run in a separate world of this kind, in which nothing else happens."""

    @cache
    def lora_in(name: str) -> dict[str, Tensor]:
        with pytest.MonkeyPatch.context() as patch:
            lora: dict[str, Tensor] = trained(host_in(WORLDS[name](patch, tmp_path_factory.mktemp("alone"))))[0]
            return {key: tensor.clone() for key, tensor in lora.items()}

    return lora_in


@pytest.fixture
def alone(world_name: str, undisturbed: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The LoRA of an undisturbed run in a world like this one."""
    return undisturbed(world_name)


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_webui_host_implements_the_host_protocol(host: WebuiHost, tmp_path: Path) -> None:
    typed: Host = host
    assert typed.lora_dir == tmp_path / "Lora"


def test_webui_weights_are_shared_not_copied(world: World, host: WebuiHost) -> None:
    model = host.load_model(TrainConfig())
    assert not [row for row in model.report if row.status == "copied"]
    with host.lease(model):
        theirs = {p.untyped_storage().data_ptr() for p in parameters_of(world)}
        ours = {p.untyped_storage().data_ptr() for p in model.unet.parameters()}
        assert ours <= theirs
        assert not any(p.requires_grad or p.is_inference() for p in model.unet.parameters())
    assert (model.name, model.device.type, model.spec.scale_factor) == ("checkpoint-0", "cpu", 0.18215)


def test_run_target_needs_no_lock_and_loads_nothing(world: World, host: WebuiHost, tmp_path: Path) -> None:
    empty = host.run_target(TrainConfig())
    if isinstance(world, A1111World):
        assert empty.is_loaded
    else:
        selected = Path("/models/checkpoint-0.safetensors") if isinstance(world, NeoWorld) else None
        assert (empty.checkpoint, empty.is_loaded) == (selected, False), "Forge loads nothing before the first use"
    with host.lease() as model:  # run_target must not wait for the lock held here
        run_target = host.run_target(TrainConfig())
    assert (run_target.checkpoint, run_target.is_loaded) == (model.path, True)
    assert (run_target.dtype_bytes, run_target.device, run_target.gpu) == (4, "cpu", None)
    other = host.run_target(TrainConfig(checkpoint=str(tmp_path / "other.safetensors")))
    assert (other.checkpoint, other.is_loaded) == (tmp_path / "other.safetensors", False)
    assert not host.run_target(TrainConfig(precision="fp16")).is_loaded, "another precision needs a copy"
    assert not host.run_target(TrainConfig(vae=str(tmp_path / "other-vae.safetensors"))).is_loaded


def parameters_of(world: World) -> Iterator[Tensor]:
    modules = [world.model] if isinstance(world, A1111World) else world.parts
    return (parameter for module in modules for parameter in module.parameters())


def test_no_webui_memory_is_referenced_between_leases(world: World, host: WebuiHost) -> None:
    model = host.load_model(TrainConfig())
    modules = (model.unet, model.vae, *model.text_encoders)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    assert all(parameter.untyped_storage().nbytes() == 0 for parameter in parameters)


def test_16_bit_text_encoders_are_converted_once_for_all_leases(world: World, host: WebuiHost) -> None:
    """Forge keeps them in 16 bit on the CPU; a generation with a LoRA repointers or changes them between leases."""
    world.generate()
    for parameter in text_parameters(world):
        parameter.data = parameter.data.half()
    model = host.load_model(TrainConfig())
    (encoder,) = model.text_encoders
    expected = [parameter.clone() for parameter in encoder.parameters()]
    pointers = [parameter.data_ptr() for parameter in encoder.parameters()]
    theirs = {parameter.data_ptr() for parameter in text_parameters(world)}
    assert theirs.isdisjoint(pointers) and not any(
        p.numel() for p in (*model.unet.parameters(), *model.vae.parameters())
    )
    world.generate("style")
    with host.lease(model):
        assert [parameter.data_ptr() for parameter in encoder.parameters()] == pointers
        assert all(torch.equal(p, before) for p, before in zip(encoder.parameters(), expected, strict=True))
        assert digest(encoder.parameters()) == digest(parameter.float() for parameter in text_parameters(world))


def digest(parameters: Iterable[Tensor]) -> list[float]:
    """Every parameter's sum of squares, sorted, because the webuis store parameters in another order."""
    return sorted(float((parameter.detach().double() ** 2).sum()) for parameter in parameters)


def text_parameters(world: World) -> Iterator[Tensor]:
    text = world.model.cond_stage_model if isinstance(world, A1111World) else world.parts[1]
    parameters: Iterator[Tensor] = text.parameters()
    return parameters


def test_training_leaves_the_webuis_weights_unchanged(world: World, host: WebuiHost) -> None:
    image, styled = world.generate(), world.generate("style")
    world.generate()
    flags = [p.requires_grad for p in parameters_of(world)]
    trained(host)
    assert [p.requires_grad for p in parameters_of(world)] == flags
    assert world.weights() == image
    assert (world.generate("style"), world.generate()) == (styled, image) and image != styled


def test_generations_between_leases_change_neither_images_nor_training(
    world: World, host: WebuiHost, alone: dict[str, Tensor]
) -> None:
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


def test_merged_lora_is_removed_before_training(world: World, host: WebuiHost, alone: dict[str, Tensor]) -> None:
    world.generate("style")
    again, _ = trained(host)
    assert same(again, alone)


class WaitingGenerations:
    """Inside, a generation starts waiting for the lock during each forward pass of the UNet."""

    def __init__(self, world: World) -> None:
        self.images: list[str] = []
        self._world, self._threads = world, list[threading.Thread]()

    def __enter__(self) -> WaitingGenerations:
        self._hook = register_module_forward_pre_hook(self._start_generation)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()
        for thread in self._threads:
            thread.join()

    def _start_generation(self, module: nn.Module, _arguments: object) -> None:
        lock = self._world.queue_lock
        if not isinstance(module, UNet2DConditionModel) or lock._pending_threads:
            return
        self._threads.append(threading.Thread(target=lambda: self.images.append(self._world.generate("style"))))
        self._threads[-1].start()
        while not lock._pending_threads:
            time.sleep(0.001)


def test_waiting_generation_goes_first_during_training(
    world: World, host: WebuiHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generation waits during each step: the lease ends after that step, and every image is right."""
    expected = world.generate("style")
    leases = leases_of(host, monkeypatch)
    with WaitingGenerations(world) as waiting:
        _, events = trained(host)
    steps = sum(isinstance(event, StepDone) for event in events)
    assert waiting.images == [expected] * steps
    assert len(leases) >= steps, "one lease per step"


def test_waiting_generation_goes_first_during_sampling(
    world: World, host: WebuiHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generation waits during each forward pass: it runs before the next one and changes no sample."""
    model, control = host.load_model(TrainConfig()), Control()
    prompts = [SamplePrompt("a fox", "", 64, 64, seed=3, steps=3, cfg=3.0)]

    def sample() -> bytes:
        steps = sample_in_steps(model, prompts, sampler="Euler", clip_skip=1)
        (image,) = result_of(run_in_turns(host, model, control, steps))
        return image.tobytes()

    alone = sample()
    expected = world.generate("style")
    leases = leases_of(host, monkeypatch)
    with WaitingGenerations(world) as waiting:
        among = sample()
    assert among == alone
    assert waiting.images == [expected] * 3 and len(leases) == 1 + 3


def leases_of(host: WebuiHost, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list that grows with each lease from now on."""
    lease, leases = host.lease, list[Any]()

    def counted(*arguments: Any) -> Any:
        leases.append(arguments)
        return lease(*arguments)

    monkeypatch.setattr(host, "lease", counted)
    return leases


def result_of(events: Generator[Any, None, T]) -> T:
    """The return value of a generator."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            result: T = end.value
            return result


# --- checkpoints that change meanwhile ----------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [False, True])
def test_run_waits_while_another_checkpoint_is_loaded(
    world: World, host: WebuiHost, alone: dict[str, Tensor], in_place: bool
) -> None:
    """A1111 loads a checkpoint of the same architecture into the old storage; Forge always creates a new model."""
    if in_place and isinstance(world, ForgeWorld):
        pytest.skip("Forge never loads a checkpoint in place")
    states: list[StateChanged] = []
    moves = iter([5, 0])

    def switch(event: Event) -> None:
        if isinstance(event, StateChanged):
            states.append(event)
        if (isinstance(event, StepDone) and event.step == 1) or (states and states[-1].state == "waiting"):
            world.switch_to(next(moves), in_place=in_place)

    together, _ = trained(host, during=switch)
    assert [event.state for event in states] == ["waiting", "running"]
    assert "has checkpoint-5 loaded" in states[0].message and "checkpoint-0" in states[0].message
    assert same(together, alone)


@pytest.mark.parametrize(
    ("change", "undo", "said"),
    [
        (
            lambda world: world.store(torch.float8_e4m3fn),
            lambda world: world.store(None),
            "weights of checkpoint-0 as float8_e4m3fn instead of float32",
        ),
        (lambda world: world.store(torch.bfloat16), lambda world: world.store(None), "as bfloat16 instead of float32"),
        (
            lambda world: world.use_vae("/models/VAE/other.safetensors"),
            lambda world: world.use_vae(""),
            "checkpoint-0 loaded with the VAE other.safetensors instead of its own VAE",
        ),
    ],
    ids=["8-bit", "16-bit", "vae"],
)
def test_run_waits_while_the_webuis_weights_are_of_another_kind(
    world: World, host: WebuiHost, alone: dict[str, Tensor], change: Any, undo: Any, said: str
) -> None:
    """The message names what changed, and the run gives the same LoRA as one that was not disturbed."""
    world.generate()
    states: list[StateChanged] = []

    def disturb(event: Event) -> None:
        if isinstance(event, StateChanged):
            states.append(event)
            if event.state == "waiting":
                undo(world)
        if isinstance(event, StepDone) and event.step == 1:
            change(world)

    together, _ = trained(host, during=disturb)
    assert [event.state for event in states] == ["waiting", "running"]
    assert said in states[0].message and states[0].message.count("checkpoint-0") == 1
    assert same(together, alone)


def test_run_waits_while_single_weights_are_unusable(world: World, host: WebuiHost) -> None:
    model = host.load_model(TrainConfig())
    changed = next(parameter for parameter in parameters_of(world) if parameter.ndim == 4)
    before, changed.data = changed.data, changed.data.to(torch.float8_e4m3fn)
    with pytest.raises(ModelUnavailableError, match="changed the weights of checkpoint-0"), host.lease(model):
        pass
    changed.data = before
    with host.lease(model) as leased:
        assert leased is model


def test_run_waits_while_no_model_is_loaded(world: World, host: WebuiHost) -> None:
    model = host.load_model(TrainConfig())
    before, world.model_data.sd_model = world.model_data.sd_model, None
    with pytest.raises(ModelUnavailableError, match="no model loaded"), host.lease(model):
        pass
    world.model_data.sd_model = before
    with host.lease(model) as leased:
        assert leased is model


def test_every_lease_returns_the_same_model_object(host: WebuiHost) -> None:
    model = host.load_model(TrainConfig())
    with host.lease(model) as first:
        assert first is model and first.unet.conv_in.weight.numel()
    with host.lease() as fresh:
        assert fresh is not model and torch.isfinite(fresh.unet.conv_in.weight).all()


def test_model_settings_override_what_the_webui_says(host: WebuiHost) -> None:
    """The model still shares the webui's weights."""
    model = host.load_model(TrainConfig(prediction_type="v_prediction", zero_terminal_snr="on"))
    assert (model.spec.prediction_type, model.spec.zero_terminal_snr) == ("v_prediction", True)
    assert float(alphas_of(model)[-1]) == pytest.approx(0.0, abs=1e-12)
    with host.lease(model) as leased:
        assert leased is model
        assert leased.unet.conv_in.weight.numel() > 0


def test_nested_lease_raises_instead_of_deadlocking(host: WebuiHost) -> None:
    with host.lease(), pytest.raises(HostError, match="cannot be nested"), host.lease():
        pass


# --- copies from a file -----------------------------------------------------------------------------


def test_another_checkpoint_is_read_without_touching_the_webui(world: World, host: WebuiHost, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "mine.safetensors", "sd1", seed=3)
    world.generate()
    before = world.weights()
    model = host.load_model(TrainConfig(checkpoint=str(tmp_path / "mine.safetensors")))
    assert model.name == "mine" and "the webui has another checkpoint loaded" in model.note and "MiB" in model.note
    world.switch_to(5)
    with host.lease(model) as leased:  # whatever the webui loads meanwhile
        name = "model.diffusion_model.input_blocks.0.0.weight"
        assert torch.equal(leased.unet.conv_in.weight, tiny_tensors("sd1", seed=3)[name].half().float())
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


def test_setting_a_precision_reads_a_copy(world: World, host: WebuiHost, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-0.safetensors"
    write_tiny_checkpoint(path, "sd1", seed=0)
    world.generate()
    world.model.sd_checkpoint_info.filename = str(path)
    model = host.load_model(TrainConfig(precision="bf16"))
    assert "the settings set a precision" in model.note and model.dtype == torch.bfloat16
    model = host.load_model(TrainConfig(precision="bf16", fp8_base=True))
    assert "the settings set a precision" in model.note and "stored in 8 bit" in model.note


def test_fp8_base_does_not_change_the_webuis_weights(world: World, host: WebuiHost) -> None:
    world.generate()
    model = host.load_model(TrainConfig(fp8_base=True))
    assert "fp8_base has no effect" in model.note
    assert not any(is_fp8(layer) for layer in model.unet.modules())


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
def test_noise_source_follows_the_webuis_settings(source: str | None, device: str, expected: str) -> None:
    options = SimpleNamespace() if source is None else SimpleNamespace(randn_source=source)
    assert str(noise_source(SimpleNamespace(opts=options), torch.device(device))) == expected


def test_forge_uses_cpu_noise_to_reproduce_other_programs() -> None:
    options = SimpleNamespace(randn_source="NV", forge_try_reproduce="ComfyUI")
    assert noise_source(SimpleNamespace(opts=options), torch.device("cuda")) == torch.device("cpu")


@pytest.mark.parametrize("world", WORLDS, indirect=True)
def test_sampler_options_follow_the_webuis_settings(world: World, host: WebuiHost) -> None:
    """All Forges pass whole timesteps to the UNet; Forge Classic also samples the first step without guidance."""
    usual = SamplerOptions(torch.device("cpu"), quantize_timesteps=not isinstance(world, A1111World))
    if isinstance(world, ClassicWorld):
        usual = replace(usual, skip_early_cond=0.0)
    assert host.sampler_options == usual
    set_in(sys.modules["modules.shared"], eta_noise_seed_delta=31337, eta_ancestral=0.5, eta_ddim=0.2)
    set_in(sys.modules["modules.shared"], skip_early_cond=0.25, enable_quantization=True)
    assert host.sampler_options == SamplerOptions(torch.device("cpu"), 31337, 0.5, 0.2, True, 0.25)


def set_in(shared: Any, **options: Any) -> None:
    for name, value in options.items():
        setattr(shared.opts, name, value)


# --- results and detection ------------------------------------------------------------------------


def test_new_lora_files_appear_in_the_webuis_list(world: World, host: WebuiHost) -> None:
    host.refresh_loras()
    assert world.listed == 1


@pytest.mark.parametrize("world", WORLDS, indirect=True)
def test_webui_is_detected_by_its_modules(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        A1111World: ("AUTOMATIC1111", "modules"),
        ForgeWorld: ("Forge", "backend.diffusion_engine.base"),
        NeoWorld: ("Forge Neo 2.26", "backend.diffusion_engine.base"),
        ReforgeWorld: ("reForge", "ldm_patched.modules.model_management"),
        ClassicWorld: ("Forge Classic", "ldm_patched.modules.model_management"),
    }
    name, module = found[type(world)]
    monkeypatch.setattr("lib_lora_train.hosts.webui.detect._has", {module}.__contains__)
    versions: dict[type, str] = {ClassicWorld: "classic", NeoWorld: "neo"}
    monkeypatch.setattr("lib_lora_train.hosts.webui.detect._forge_version", lambda: versions.get(type(world), ""))
    assert detect_host().name == name


def test_adapter_stays_on_the_model_while_weights_move(world: World, host: WebuiHost) -> None:
    model = host.load_model(TrainConfig())
    with host.lease(model):
        training = started(model, small_config())
    adapter = training.adapter
    assert isinstance(adapter, Adapter)
    try:
        world.unload()
        with host.lease(model) as leased:
            layer = next(iter(adapter.layers.values()))
            theirs = {p.untyped_storage().data_ptr() for p in parameters_of(world)}
            weight: Tensor = layer.base_layer.weight  # type: ignore[assignment]
            assert leased is model and weight.untyped_storage().data_ptr() in theirs
    finally:
        adapter.remove()


# --- Forge and reForge only ---------------------------------------------------------------------


def test_selecting_a_vae_in_forge_does_not_interrupt_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The drop-down changes what the next generation loads, not what is loaded."""
    world = ForgeWorld(monkeypatch, tmp_path / "Lora")
    host = host_in(world)
    model = host.load_model(TrainConfig())
    world.select(0, vae="/models/VAE/other.safetensors")
    with host.lease(model) as leased:
        assert leased is model
    world.generate()
    with (
        pytest.raises(ModelUnavailableError, match="with the VAE other"),
        host.lease(model),
    ):
        pass
    world.select(0)
    world.generate()
    with host.lease(model) as leased:
        assert leased is model


def test_vae_loaded_in_forge_is_detected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = ForgeWorld(monkeypatch, tmp_path / "Lora")
    world.select(0, vae="/models/VAE/it's [new].safetensors")
    world.generate()
    loaded = Forge().loaded_model()
    assert loaded is not None and loaded.vae == Path("/models/VAE/it's [new].safetensors")


@pytest.mark.parametrize(("kind", "expected"), [(EPS, "epsilon"), (V_PREDICTION, "v_prediction")])
def test_reforge_prediction_type_comes_from_the_schedules_class(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: type, expected: str
) -> None:
    monkeypatch.setattr(ReforgeWorld, "prediction", kind)
    model = host_in(ReforgeWorld(monkeypatch, tmp_path / "Lora")).load_model(TrainConfig())
    assert (model.spec.prediction_type, model.schedule.prediction_type) == (expected, expected)


def test_unsupported_reforge_prediction_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ReforgeWorld, "prediction", EDM)
    with pytest.raises(ModelError, match="predicts EDM"):
        host_in(ReforgeWorld(monkeypatch, tmp_path / "Lora")).load_model(TrainConfig())
