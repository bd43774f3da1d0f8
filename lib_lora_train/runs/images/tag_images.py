"""Draws a trigger word with each of its tags and without, as the report on tags compares them.

The images are kept in the run's folder, so that drawing which was stopped continues where it was.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from lib_lora_train.adapters.file_on_model import FileOnModel, without_adapter
from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.events import Event, Progress
from lib_lora_train.core.image_sizes import whole_unet_steps
from lib_lora_train.hosts.host import Host
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.runs.images.drawing import Row, events_of
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.history import FoundLora
from lib_lora_train.sampling.infotext import infotext, read_image, read_infotext, write_image
from lib_lora_train.sampling.sample import images_at_once, sample_in_steps
from lib_lora_train.sampling.samplers import sampler_for
from lib_lora_train.training.lease import TURN_SECONDS, run_in_turns, run_leased

SEEDS = 8
"""Images of each prompt."""


@dataclass(eq=False)
class TagDrawing:
    """Draws prompts with the LoRA `file` of a run, or without it, `SEEDS` images of each."""

    host: Host
    model: DiffusionModel
    control: Control
    config: TrainConfig
    folder: RunFolder
    file: FoundLora
    _lora: FileOnModel | None = None

    @property
    def side(self) -> int:
        """Width and height of the images in px: as large as training images, within what the model was trained at."""
        return whole_unet_steps(min(self.config.resolution_side, self.model.spec.own_resolution))

    def rows(
        self, texts: Sequence[str], *, with_lora: bool = True, before: int = 0, total: int = 0
    ) -> Generator[Event, None, dict[str, Row]]:
        """The images of each prompt, in the order of their seeds; RunStoppedError when it is stopped.

        `before` and `total` are images for the progress.
        """
        rows: dict[str, Row] = {}
        for number, text in enumerate(texts):
            rows[text] = yield from self._row(text, with_lora=with_lora)
            yield Progress("samples", before + (number + 1) * SEEDS, total)
        return rows

    def _row(self, text: str, *, with_lora: bool) -> Generator[Event, None, Row]:
        prompts = [self._prompt(text, number) for number in range(SEEDS)]
        paths = [self.folder.tag_image(self.file.path.stem if with_lora else "", text, n) for n in range(1, SEEDS + 1)]
        texts = [self._infotext(prompt, with_lora=with_lora) for prompt in prompts]
        found = [self._kept(path, text) for path, text in zip(paths, texts, strict=True)]
        missing = [number for number, image in enumerate(found) if image is None]
        at_once = images_at_once(self.side, self.side)
        for start in range(0, len(missing), at_once):
            numbers = missing[start : start + at_once]
            drawn = yield from self._draw([prompts[number] for number in numbers], with_lora=with_lora)
            for number, image in zip(numbers, drawn, strict=True):
                write_image(paths[number], image, texts[number])
                found[number] = image
        return [image for image in found if image]

    def _prompt(self, text: str, number: int) -> SamplePrompt:
        config = self.config
        return SamplePrompt(
            prompt=text,
            negative="",
            width=self.side,
            height=self.side,
            seed=config.seed + number,
            steps=config.sample_steps,
            cfg=config.sample_cfg,
        )

    def _infotext(self, prompt: SamplePrompt, *, with_lora: bool) -> str:
        lora = self.file.path.stem if with_lora else ""
        config = self.config
        return infotext(
            prompt,
            sampler=sampler_for(self.model.schedule, config.sample_sampler, self.host.sampler_options),
            clip_skip=config.clip_skip,
            model=self.model.name,
            lora=lora,
        )

    def _kept(self, path: Path, text: str) -> Image.Image | None:
        """The image that was drawn before with the same settings, unless the LoRA file is newer."""
        try:
            is_current = path.stat().st_mtime_ns >= self.file.path.stat().st_mtime_ns
        except OSError:  # one of them is missing
            return None
        return read_image(path) if is_current and read_infotext(path) == text else None

    def _draw(self, prompts: Sequence[SamplePrompt], *, with_lora: bool) -> Generator[Event, None, Row]:
        lora = (yield from self._file_on_model()) if with_lora else None
        drawing = sample_in_steps(
            self.model,
            prompts,
            sampler=self.config.sample_sampler,
            clip_skip=self.config.clip_skip,
            sampler_options=self.host.sampler_options,
        )

        def within() -> AbstractContextManager[None]:
            return lora.in_place() if lora else without_adapter(self.model)

        turns = run_in_turns(self.host, self.model, self.control, drawing, within=within, turn_seconds=TURN_SECONDS)
        return (yield from events_of(turns))

    def _file_on_model(self) -> Generator[Event, None, FileOnModel]:
        if self._lora is None:
            put = partial(FileOnModel, file=read_adapter(self.file.path))
            self._lora = yield from run_leased(self.host, self.model, self.control, put)
        return self._lora
