"""Forge Neo: what differs from Forge, and quantised or partly loaded checkpoints in any webui."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import HostError, ModelError
from lib_lora_train.hosts.host import GenerationRequest, RunTarget
from lib_lora_train.hosts.webui.copied_weights import notes_on_copies
from lib_lora_train.hosts.webui.host import WebuiHost
from lib_lora_train.models.architecture import UNET_PREFIX
from lib_lora_train.models.graft import graft, rebind, release_weights
from lib_lora_train.models.noise_schedule import FlowSchedule
from lib_lora_train.runs.checks.checkpoint_check import check_checkpoint
from lib_lora_train.runs.estimates.requirements import estimate_requirements
from tests.stand_ins.tiny_models import tiny_spec, tiny_tensors, write_tiny_checkpoint
from tests.stand_ins.training_parts import small_plan
from tests.stand_ins.webui.neo import NeoWorld, flow_predictor
from tests.stand_ins.webui.quantized import FORMATS, PackedTensor
from tests.stand_ins.webui.worlds import host_in


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> NeoWorld:
    return NeoWorld(monkeypatch, tmp_path / "Lora")


@pytest.fixture
def host(world: NeoWorld) -> WebuiHost:
    return host_in(world)


def load(world: NeoWorld, path: Path, **tensors: Any) -> Path:
    """Write a checkpoint and make it the loaded one."""
    write_tiny_checkpoint(path, "sd1", seed=0)
    world.generate()
    world.model.sd_checkpoint_info.filename = str(path)
    return path


# --- quantised checkpoints ----------------------------------------------------------------------


def unpacked(world: NeoWorld, name: str) -> torch.Tensor:
    packed: Any = world.parts[0].get_parameter(name)
    return packed.dequantize().float()  # type: ignore[no-any-return]


def test_quantised_weights_are_trained_as_unpacked_copies(world: NeoWorld, host: WebuiHost) -> None:
    world.is_quantized = True
    before = world.generate()
    model = host.load_model(TrainConfig())
    assert "quantised (int8)" in model.note and "MiB more memory" in model.note
    with host.lease(model):
        ours = model.unet.get_parameter("time_embedding.linear_1.weight")
        assert torch.equal(ours, unpacked(world, "time_embed.0.weight"))
    assert world.generate() == before


def test_copies_of_quantised_weights_never_contain_a_lora(world: NeoWorld, host: WebuiHost) -> None:
    world.is_quantized = True
    world.generate("other")
    model = host.load_model(TrainConfig())
    world.generate("other")
    with host.lease(model):
        block = "transformer_blocks.0.attn1.to_q.weight"
        ours = model.unet.get_parameter(f"down_blocks.0.attentions.0.{block}")
        assert torch.equal(ours, unpacked(world, f"input_blocks.1.1.{block}"))


@pytest.mark.parametrize("packing", FORMATS)
def test_quantised_weights_of_every_format_are_unpacked_as_the_webui_does(
    world: NeoWorld, host: WebuiHost, packing: str
) -> None:
    world.is_quantized, world.packing = True, packing
    world.generate()
    model = host.load_model(TrainConfig())
    with host.lease(model):
        ours = model.unet.get_parameter("time_embedding.linear_1.weight")
        assert torch.equal(ours, unpacked(world, "time_embed.0.weight"))


def bytes_held(world: NeoWorld) -> int:
    """What the stand-in's weights really take."""
    tensors = [tensor for part in world.parts for tensor in part.parameters()]
    return sum(t.held_bytes if isinstance(t, PackedTensor) else t.nbytes for t in tensors)


@pytest.mark.parametrize("packing", FORMATS)
def test_the_plan_counts_what_a_quantised_model_and_its_copies_take(
    world: NeoWorld, host: WebuiHost, tmp_path: Path, packing: str
) -> None:
    """Within 8%, also for a checkpoint whose file cannot be read."""
    world.is_quantized, world.packing = True, packing
    world.generate()
    world.model.sd_checkpoint_info.filename = str(tmp_path / f"{packing}.safetensors")
    (tmp_path / f"{packing}.safetensors").write_bytes(b"not a file that can be read")
    config = TrainConfig(resolution=128, min_bucket=64)
    target = host.run_target(config)
    assert target.is_loaded and not target.problem and target.weights
    needs = estimate_requirements(config, small_plan(config), target, tmp_path)
    memory = needs.memory
    assert memory is not None and memory.is_loaded

    model = host.load_model(config)
    copied = sum(row.bytes for row in model.report if row.status == "copied")
    assert memory.copies == pytest.approx(copied, rel=0.08)
    assert memory.base - memory.copies == pytest.approx(bytes_held(world), rel=0.08)
    assert memory.extra == memory.copies + max(memory.adapter + memory.activations, memory.encoding)
    assert "unpacked copies of its weights" in " ".join(needs.sentences)
    assert needs.values["memory_bytes"]["copies"] == memory.copies


def test_a_model_that_is_not_quantised_has_no_copies_in_the_plan(world: NeoWorld, host: WebuiHost) -> None:
    world.generate()
    assert host.run_target(TrainConfig()).weights is None


# --- partly loaded checkpoints ------------------------------------------------------------------


def test_weights_on_another_device_are_copied_for_each_turn_only() -> None:
    """The meta device stands for the GPU: nothing can be kept there, but where a weight is can be seen."""
    tensors = tiny_tensors("sd1")
    grafted = graft(tensors, tiny_spec(tensors), device=torch.device("meta"))
    assert {row.reason for row in grafted.report if row.status == "copied"} == {"kept on cpu"}
    assert "copied to the GPU for each turn" in " ".join(notes_on_copies(grafted.report))
    weight = grafted.unet.get_parameter("conv_in.weight")
    assert weight.device.type == "meta" and weight.numel()
    release_weights(grafted.slots)
    assert not weight.numel(), "a kept copy would take the memory that the webui freed"
    assert rebind(grafted.slots, tensors) == len(grafted.slots), "so it is never stale"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_move_between_gpu_and_cpu_from_turn_to_turn() -> None:
    tensors = tiny_tensors("sd1")
    there = {name: tensor.cuda() if number % 2 else tensor for number, (name, tensor) in enumerate(tensors.items())}
    grafted = graft(there, tiny_spec(tensors), device=torch.device("cuda"))
    assert {parameter.device.type for parameter in grafted.unet.parameters()} == {"cuda"}
    release_weights(grafted.slots)
    rebind(grafted.slots, {name: tensor.cuda() for name, tensor in tensors.items()})
    name = f"{UNET_PREFIX}input_blocks.0.0.weight"
    assert torch.equal(grafted.unet.get_parameter("conv_in.weight").cpu(), tensors[name])


def test_low_vram_patches_never_reach_the_training(world: NeoWorld, host: WebuiHost) -> None:
    world.is_short_of_memory = True
    plain = world.generate()
    model = host.load_model(TrainConfig())
    with host.lease(model):
        expected = model.unet.state_dict()["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"].clone()
    assert world.generate("other") != plain
    with host.lease(model):
        now = model.unet.state_dict()["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
        assert torch.equal(now, expected) and not any(p.is_inference() for p in model.unet.parameters())
    assert world.generate() == plain


# --- models that cannot be trained --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Flux", "ZImage", "QwenImage", "Chroma", "Mugen", "Lumina2", "Wan"])
def test_an_unsupported_model_is_named_before_the_start(world: NeoWorld, host: WebuiHost, kind: str) -> None:
    world.generate()
    world.model_data.sd_model = type(kind, (SimpleNamespace,), {})(**vars(world.model))
    config = TrainConfig()
    (problem,) = check_checkpoint(config, host.run_target(config)).problems
    assert problem.level == "error" and kind[:3].lower() in problem.message.lower().replace("-", "")
    with pytest.raises(ModelError) as refused:
        host.load_model(config)
    assert str(refused.value) == problem.message


def test_a_selected_model_is_named_before_the_webui_loads_it(world: NeoWorld, host: WebuiHost, tmp_path: Path) -> None:
    flux = tmp_path / "flux.safetensors"
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}, flux)
    world.model_data.forge_loading_parameters["checkpoint_info"].filename = str(flux)
    config = TrainConfig()
    (problem,) = check_checkpoint(config, host.run_target(config)).problems
    assert "Flux" in problem.message


# --- files beside the checkpoint ----------------------------------------------------------------


def test_vae_is_found_by_its_tensors_in_any_folder(world: NeoWorld, host: WebuiHost, tmp_path: Path) -> None:
    vae, text = tmp_path / "anything" / "a.safetensors", tmp_path / "anything" / "clip_l.safetensors"
    vae.parent.mkdir()
    save_file({"decoder.conv_in.weight": torch.zeros(1)}, vae)
    save_file({"text_model.final_layer_norm.weight": torch.zeros(1)}, text)
    world.model_data.forge_loading_parameters["additional_modules"] = [str(text), str(vae)]
    world.generate()
    assert host.run_target(TrainConfig()).vae == vae
    with pytest.raises(HostError, match=r"loaded with clip_l\.safetensors.* set precision to auto"):
        host.load_model(TrainConfig(precision="bf16"))
    assert host.load_model(TrainConfig()).vae_hash, "the loaded weights can be trained on"


# --- clip skip ----------------------------------------------------------------------------------


def test_a_clip_skip_other_than_the_webuis_is_pointed_out(world: NeoWorld, host: WebuiHost, tmp_path: Path) -> None:
    load(world, tmp_path / "fox.safetensors")
    problems = check_checkpoint(TrainConfig(), host.run_target(TrainConfig())).problems
    (hint,) = [problem for problem in problems if problem.where == "clip_skip"]
    assert "1 here and 2 in the webui's settings" in hint.message and hint.remedy == (("clip_skip", 2),)
    same = TrainConfig(clip_skip=2)
    assert not [p for p in check_checkpoint(same, host.run_target(same)).problems if p.where == "clip_skip"]


@pytest.mark.parametrize(("applies", "setting", "expected"), [(True, 3, 1), (True, 2, 0), (False, 3, 0)])
def test_clip_skip_on_sdxl_is_pointed_out_where_the_webui_applies_it(
    tmp_path: Path, applies: bool, setting: int, expected: int
) -> None:
    path = tmp_path / "xl.safetensors"
    write_tiny_checkpoint(path, "sdxl", seed=0)
    target = RunTarget(path, False, 4, "cpu", None, clip_skip=setting, applies_clip_skip_to_sdxl=applies)
    problems = check_checkpoint(TrainConfig(), target).problems
    assert len([problem for problem in problems if problem.where == "clip_skip"]) == expected


@pytest.mark.parametrize(("is_sdxl", "expected"), [(True, 2), (False, 5)])
def test_sdxl_images_of_a_run_use_the_layer_it_was_trained_with(
    world: NeoWorld, host: WebuiHost, is_sdxl: bool, expected: int
) -> None:
    world.generate()
    world.model.is_sdxl = is_sdxl
    host.txt2img("Euler").generate(GenerationRequest("a fox", "", 64, 64, 1, 2, 7.0, clip_skip=5))
    assert world.txt2img.clip_skips == [expected]


def test_a_quantised_tensor_is_recognised_whatever_its_dtype() -> None:
    from lib_lora_train.models.quantized import is_quantized

    packed = PackedTensor.pack(torch.randn(4, 4))
    assert is_quantized(packed) and is_quantized(torch.nn.Parameter(packed, requires_grad=False))
    assert not is_quantized(torch.zeros(2)) and not is_quantized(torch.nn.Parameter(torch.zeros(2)))


# --- rectified flow -----------------------------------------------------------------------------


def test_a_rectified_flow_is_taken_from_the_webui(world: NeoWorld, host: WebuiHost) -> None:
    """Neo's "const" predictor with 1000·σ as the UNet's time; nothing in the file or the settings says so."""
    world.flow = flow_predictor()
    world.generate()
    assert not host.run_target(TrainConfig()).problem
    model = host.load_model(TrainConfig())
    assert model.spec.prediction_type == "rectified_flow" and isinstance(model.schedule, FlowSchedule)
    assert not model.spec.zero_terminal_snr


def test_the_settings_override_the_webui(world: NeoWorld, host: WebuiHost) -> None:
    world.flow = flow_predictor()
    world.generate()
    assert host.load_model(TrainConfig(prediction_type="epsilon")).spec.prediction_type == "epsilon"


@pytest.mark.parametrize("predictor", [{"multiplier": 1.0}, {"multiplier": None}, {"prediction_type": "edm"}])
def test_other_flows_are_still_refused(predictor: dict[str, Any], world: NeoWorld, host: WebuiHost) -> None:
    """Flux and its kind pass σ itself as the time."""
    world.flow = flow_predictor(**predictor)
    world.generate()
    assert "is not supported" in host.run_target(TrainConfig()).problem
    with pytest.raises(ModelError, match="is not supported"):
        host.load_model(TrainConfig())


REQUEST = GenerationRequest("zok", "", 64, 64, seed=1, steps=2, cfg=7.0, clip_skip=1)


def drawn_with(world: NeoWorld, host: WebuiHost, sampler: str) -> Any:
    host.txt2img(sampler).generate(REQUEST)
    return world.txt2img.jobs[-1]


def test_flows_are_drawn_with_the_shift_of_the_preset_and_an_own_scheduler(world: NeoWorld, host: WebuiHost) -> None:
    """With "Automatic", Neo divides 0 by 0; another scheduler that was chosen is kept."""
    world.flow = flow_predictor()
    world.generate()
    world.shared.opts.forge_preset, world.shared.opts.xl_t2i_dcfg = "xl", 9.0
    job = drawn_with(world, host, "Euler")
    assert (job.scheduler, job.distilled_cfg_scale) == ("Simple", 9.0)
    assert host.sampler_options.flow_shift == 9.0
    assert drawn_with(world, host, "Euler Karras").scheduler == "Karras"


def test_other_models_are_drawn_as_before(world: NeoWorld, host: WebuiHost) -> None:
    world.generate()
    job = drawn_with(world, host, "Euler")
    assert job.scheduler == "Automatic" and not hasattr(job, "distilled_cfg_scale")
    assert host.sampler_options.flow_shift is None


def test_a_sampler_that_cannot_draw_flows_is_refused(
    world: NeoWorld, host: WebuiHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.flow = flow_predictor()
    monkeypatch.setitem(sys.modules["modules.sd_samplers"].all_samplers_map, "PLMS", None)
    world.generate()
    with pytest.raises(HostError, match="PLMS cannot draw a rectified flow"):
        host.txt2img("PLMS").generate(REQUEST)


def test_a_flow_is_drawn_with_euler_in_place_of_ddim_and_says_so(
    world: NeoWorld, host: WebuiHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules["modules.sd_samplers"].all_samplers_map, "DDIM", None)
    world.flow = flow_predictor()
    world.generate()
    assert host.txt2img("DDIM").sampler == "Euler"
    assert drawn_with(world, host, "DDIM").sampler_name == "Euler"
