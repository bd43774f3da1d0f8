"""A guest leaves the webui as it was: its options, random numbers, prompt caches and weights, after every use."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.hosts.host import GenerationRequest
from lib_lora_train.hosts.webui.guest import restored_random_state
from lib_lora_train.hosts.webui.host import WebuiHost
from tests.stand_ins.interrogators import install_interrogators
from tests.stand_ins.training_parts import small_config, started
from tests.stand_ins.webui.modules import install, module_of
from tests.stand_ins.webui.worlds import WORLDS, World, host_in

REQUEST = GenerationRequest("a fox", "", 64, 64, seed=3, steps=2, cfg=5.0, clip_skip=2)
SKIP = "CLIP_stop_at_last_layers"


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    (tmp_path / "Lora").mkdir()
    (tmp_path / "Lora" / "zok-000001.safetensors").touch()
    found = WORLDS[request.param](monkeypatch, tmp_path / "Lora")
    install_interrogators(monkeypatch, found, tmp_path / "models")
    install_lanczos(monkeypatch)
    found.generate()
    return found


@pytest.fixture
def host(world: World) -> WebuiHost:
    return host_in(world)


def install_lanczos(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upscaler that uses the global random numbers, as some networks do."""
    from modules import shared  # the stand-in

    def resize_image(_mode: int, image: Image.Image, width: int, height: int, upscaler_name: str = "") -> Image.Image:
        torch.rand(1), np.random.rand(), random.random()
        return image.resize((width, height))

    scaler = type("Scaler", (), {"model_url": None})()
    entry = type("Upscaler", (), {"name": "Lanczos", "data_path": None, "scaler": scaler})()
    monkeypatch.setattr(shared, "sd_upscalers", [entry], raising=False)
    install(monkeypatch, module_of("modules.images", resize_image=resize_image))


def state_of(world: World) -> dict[str, Any]:
    """Everything of the webui that a guest could change, for comparison."""
    from modules import processing, shared  # the stand-ins

    job = processing.StableDiffusionProcessingTxt2Img
    return {
        "options": dict(shared.opts.data),
        "command line": dict(vars(shared.cmd_opts)),
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False)["state"]["key"].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "philox": getattr(sys.modules["modules.rng"], "nv_rng", None),
        "prompt cache": [list(job.cached_c), list(job.cached_uc)],
        "last prompt": world.txt2img.last_prompt,
        "job": world.txt2img.state.job,
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "image": world.generate(),
        "locked": world.queue_lock.is_held,
    }


def lease(host: WebuiHost) -> None:
    model = host.load_model(TrainConfig())
    with host.lease(model):
        training = started(model, small_config())
        training.adapter.remove()


def lease_any(host: WebuiHost) -> None:
    with host.lease() as model:
        assert model.name == "checkpoint-0"


def generate(host: WebuiHost) -> None:
    host.txt2img("Euler").generate(REQUEST)


def generate_with_lora(host: WebuiHost) -> None:
    host.txt2img("Euler").generate(GenerationRequest(**{**vars(REQUEST), "lora": "zok-000001"}))


def generate_and_fail(host: WebuiHost) -> None:
    from modules import shared  # the stand-in

    shared.opts.data["broken"] = True
    try:
        with pytest.raises(Exception, match="broken"):
            host.txt2img("Euler").generate(REQUEST)
    finally:
        del shared.opts.data["broken"]


def tag(name: str) -> Callable[[WebuiHost], None]:
    def work(host: WebuiHost) -> None:
        with host.tagger(name) as tagger:
            tagger(Image.new("RGB", (4, 4)))

    return work


ENTRIES: dict[str, Callable[[WebuiHost], object]] = {
    "lease": lease,
    "lease of any model": lease_any,
    "plan": lambda host: host.run_target(TrainConfig()),
    "sampler options": lambda host: host.sampler_options,
    "names": lambda host: (host.sampler_names(), host.upscaler_names(), host.tagger_names(), host.lora_dir),
    "LoRA files": lambda host: (host.lora_dirs, host.lora_file("zok"), host.embedding_dir),
    "tokens": lambda host: host.prompt_tokens(["zok"]),
    "checkpoints": lambda host: host.checkpoint_files(),
    "sample": generate,
    "sample with a LoRA": generate_with_lora,
    "failing sample": generate_and_fail,
    "upscale": lambda host: host.upscale(Image.new("RGB", (4, 4)), (8, 8), "Lanczos"),
    "DeepBooru": tag("DeepBooru"),
    "BLIP": tag("BLIP"),
    "list of LoRAs": lambda host: host.refresh_loras(),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_webui_is_left_as_it_was(world: World, host: WebuiHost, entry: str) -> None:
    """With an option that was never saved, one that was saved with its default, and one with another value."""
    from modules import shared  # the stand-in

    world.txt2img.during_image = lambda: fail_if_broken(shared)
    for saved in ({}, {SKIP: 1}, {SKIP: 3}):
        shared.opts.data.pop(SKIP, None)
        shared.opts.data.update(saved)
        world.txt2img.last_prompt = "the user's prompt"
        before = state_of(world)
        ENTRIES[entry](host)
        after = state_of(world)
        assert [name for name in before if before[name] != after[name]] == [], saved


def fail_if_broken(shared: Any) -> None:
    if "broken" in shared.opts.data:
        raise RuntimeError("broken")


def test_every_entry_into_the_host_is_compared(host: WebuiHost) -> None:
    """A new method of the host needs a line in `ENTRIES`."""
    covered = {
        *("lease", "load_model", "run_target", "sampler_options", "lora_dir", "sampler_names", "upscaler_names"),
        *("tagger_names", "txt2img", "generate", "upscale", "tagger", "refresh_loras", "has_waiters", "name"),
        *("follows_selection", "checkpoint_files", "lora_dirs", "lora_file", "prompt_tokens", "embedding_dir"),
    }
    assert {name for name in dir(host) if not name.startswith("_")} == covered


def test_option_that_the_user_changes_during_our_image_keeps_the_users_value(world: World, host: WebuiHost) -> None:
    from modules import shared  # the stand-in

    world.txt2img.during_image = lambda: setattr(shared.opts, SKIP, 4)
    generate(host)
    assert shared.opts.data[SKIP] == 4


def test_settings_saved_during_our_image_do_not_contain_our_values(world: World, host: WebuiHost) -> None:
    """The webui's *Apply settings* needs no lock and saves all options."""
    from modules import shared  # the stand-in

    world.txt2img.during_image = lambda: shared.opts.save(shared.config_filename)
    generate(host)
    assert SKIP not in Path(shared.config_filename).read_text()
    assert world.txt2img.clip_skips == [2]


def test_webuis_list_of_loras_is_renewed_under_its_lock(world: World, host: WebuiHost) -> None:
    """The webui empties its list first: a generation meanwhile would be without its LoRAs."""
    networks, held = sys.modules["networks"], list[bool]()
    networks.list_available_networks = lambda: held.append(world.queue_lock.is_held)  # type: ignore[attr-defined]
    host.refresh_loras()
    assert held == [True]


def test_random_numbers_continue_as_if_nothing_had_drawn_any() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with restored_random_state():
        torch.manual_seed(8)
        torch.rand(5)
    assert torch.equal(torch.rand(3), expected)
