"""What the plan says of the model is what the run and the LoRA's card say: one truth, whatever the webui knows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.hosts.webui.host import WebuiHost
from lib_lora_train.models.checkpoint import load_checkpoint
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from lib_lora_train.runs.checks.checkpoint_check import check_checkpoint, describe_loaded
from tests.stand_ins.tiny_models import tiny_tensors
from tests.stand_ins.webui.worlds import WORLDS, World, host_in


@pytest.fixture(params=["a1111", "forge", "neo", "reforge"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """A webui whose checkpoint is a file in half precision that names its own resolution."""
    path = tmp_path / "fox.safetensors"
    named = {"modelspec.resolution": "128x128", "text_heads": "4", "unet_heads": "8"}
    save_file({name: tensor.half() for name, tensor in tiny_tensors("sd1").items()}, path, named)
    found = WORLDS[request.param](monkeypatch, tmp_path / "Lora")
    found.generate()
    info: Any = found.model.sd_checkpoint_info
    info.filename = str(path)
    return found


def said(host: Any, config: TrainConfig) -> tuple[str, str]:
    """What the plan says, and what the run says once the model is loaded, both without its name and the webui's."""
    plan = check_checkpoint(config, host.run_target(config)).description.partition(": ")[2]
    run = describe_loaded(host.load_model(config), host.run_target(config))
    return _without_webui(host, plan), _without_webui(host, run)


def _without_webui(host: Any, description: str) -> str:
    """The description, which names the webui at its end."""
    if isinstance(host, StandaloneHost):
        return description
    assert description.endswith(f", in {host.name}")
    return description.removesuffix(f", in {host.name}")


def test_the_plan_and_the_run_say_the_same_of_the_webuis_model(world: World) -> None:
    plan, run = said(host_in(world), TrainConfig())
    assert plan == run == "SD1, predicts noise (epsilon), 128 px, its own VAE, fp16 file, trained in fp32"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_they_say_the_same_of_a_file_with_a_precision(world: World, precision: str) -> None:
    plan, run = said(host_in(world), TrainConfig(precision=precision))
    assert plan == run and run.endswith(f"128 px, its own VAE, fp16 file, trained in {precision}")


def test_a_file_that_is_gone_leaves_what_is_loaded(world: World) -> None:
    host = host_in(world)
    model = host.load_model(TrainConfig())
    assert model.path is not None
    model.path.unlink()
    assert "128 px, its own VAE, fp32, in " in describe_loaded(model, host.run_target(TrainConfig()))


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_the_stand_alone_app_says_the_same(tmp_path: Path, precision: str) -> None:
    plan, run = said(StandaloneHost(None, None, tmp_path, "cpu"), TrainConfig(precision=precision))
    used = "fp32" if precision == "auto" else precision
    assert plan == run and run.endswith(f"128 px, its own VAE, fp16 file, trained in {used}")


@pytest.mark.parametrize(
    ("device", "stored_as", "expected"),
    [
        ("cuda", "float16", "fp16"),
        ("cuda", "bfloat16", "bf16"),
        ("cpu", "float16", "fp32"),
        ("cuda", "float8_e4m3fn", ""),
    ],
)
def test_loaded_weights_are_trained_in_their_own_precision_on_a_card(
    world: World, device: str, stored_as: str, expected: str
) -> None:
    loaded = WebuiHost._require_model(host_in(world))
    identity = dataclasses.replace(loaded.identity, stored_as=stored_as)
    assert dataclasses.replace(loaded, identity=identity).trained_in(torch.device(device)) == expected


def test_the_embedded_model_names_its_resolution() -> None:
    assert load_checkpoint(EMBEDDED_CHECKPOINT).hints.resolution == 128
