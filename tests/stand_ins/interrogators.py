"""Stand-ins for the webuis' DeepBooru and BLIP, with the traps that were read in A1111 1.10 and Forge.

A network is "on the card" or not; it computes there only, and everything that touches it must happen under the queue
lock. A missing file would be downloaded, which a test takes as a failure. `tag` and `interrogate`, the webui's easy
ways, leave out scores, hide errors in the text and forget that the user pressed Interrupt.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.stand_ins.webui.modules import install, module_of

TAGS = ["red_light", "green_light", "blue_light", "rating:safe"]


class Network(nn.Module):
    """Scores are the mean red, green, blue of the image, and 1 for its rating."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.tags: list[str] = []
        self.is_on_card = False

    def forward(self, pixels: Tensor) -> Tensor:
        assert self.is_on_card, "the network was sent away"
        assert pixels.shape == (1, 512, 512, 3) and not torch.is_grad_enabled()
        assert pixels.min() >= 0 and pixels.max() <= 1
        return torch.cat([pixels.mean((1, 2)), torch.ones(1, 1)], 1)


class DeepBooru:
    """`modules.deepbooru.model`."""

    def __init__(self, world: Any, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.model: Network | None = None
        self.opts = SimpleNamespace(keep=False, threshold=0.5)
        self.log: list[str] = []
        self.at_image: Callable[[], None] = lambda: None

    def load(self) -> None:
        assert self.world.queue_lock.is_held, "the model is loaded under the lock"
        if self.model is not None:
            return
        files = list(self.folder.glob("*.pt"))
        assert files, "the webui would download the model now, and hold the lock meanwhile"
        self.model = Network()  # stays behind when what follows fails
        if files[0].read_bytes() != b"tags":
            raise RuntimeError("PytorchStreamReader failed\nreading zip archive \n")
        self.model.tags = TAGS

    def start(self) -> None:
        self.load()
        assert self.model is not None
        if not self.model.is_on_card:
            self.log.append("start")
        self.model.is_on_card = True

    def stop(self) -> None:
        assert self.world.queue_lock.is_held, "the model leaves under the lock"
        assert self.model is not None
        if not self.opts.keep:
            self.log.append("stop")
            self.model.is_on_card = False

    def tag(self, image: Image.Image) -> str:
        raise AssertionError("leaves out what is below the webui's own threshold")


class Interrogator:
    """`shared.interrogator`."""

    def __init__(self, world: Any, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.blip_model: object | None = None
        self.is_on_card = False
        self.is_too_large = False
        self.log: list[str] = []

    def load(self) -> None:
        assert self.world.queue_lock.is_held, "the model is loaded under the lock"
        assert list(self.folder.glob("*.pth")), "the webui would download the model now, and hold the lock meanwhile"
        self.blip_model = object()
        if self.is_too_large:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        if not self.is_on_card:
            self.log.append("start")
        self.is_on_card = True

    def unload(self) -> None:
        assert self.world.queue_lock.is_held, "the model leaves under the lock"
        self.log.append("stop")
        self.is_on_card = False

    def generate_caption(self, image: Image.Image) -> str:
        assert self.is_on_card and image.mode == "RGB"
        return f"an image of {image.width} by {image.height} ."

    def interrogate(self, image: Image.Image) -> str:
        raise AssertionError("hides errors as <error> in the text and resets the Interrupt that a user pressed")


def resize_image(mode: int, image: Image.Image, width: int, height: int) -> Image.Image:
    assert mode == 2, "resize and fill"
    return image.resize((width, height))


def install_interrogators(monkeypatch: pytest.MonkeyPatch, world: Any, models: Path) -> tuple[DeepBooru, Interrogator]:
    """Both, with their files in place."""
    for folder, name in (("torch_deepdanbooru", "model.pt"), ("BLIP", "model.pth")):
        (models / folder).mkdir(parents=True)
        (models / folder / name).write_bytes(b"tags")
    booru, blip = DeepBooru(world, models / "torch_deepdanbooru"), Interrogator(world, models / "BLIP")
    install(
        monkeypatch,
        module_of("modules.paths", models_path=str(models)),
        module_of("modules.images", resize_image=resize_image),
        module_of("modules.deepbooru", model=booru),
    )
    import modules.shared

    modules.shared.interrogator = blip
    return booru, blip
