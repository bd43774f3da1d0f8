"""Draws regularisation images with the model that will be trained, as the guides want them.

The model with the run's VAE and no LoRA draws with DDIM, without negative prompt, in the sizes of the training buckets,
from fixed seeds. Images are kept by model and prompt, so that another run finds them and draws only what is missing:

    FOLDER/MODEL-HASH/dog/512x768-HASH-42.png, 512x768-HASH-42.txt

The first hash is that of the model, VAE included, the second that of the prompt; 42 is the seed. An image that was
deleted, and whose caption file is still there, was thrown out: the next seed is drawn in its place.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lib_lora_train.adapters.file_on_model import without_adapter
from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core import atomic_write
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import DataError
from lib_lora_train.core.events import Event, Progress
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.preserved_captions import class_caption
from lib_lora_train.dataset.sample_captions import fixed_caption_for
from lib_lora_train.hosts.host import Host
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.runs.images.drawing import events_of
from lib_lora_train.sampling.infotext import infotext, read_image, read_infotext, write_image
from lib_lora_train.sampling.sample import images_at_once, sample_in_steps
from lib_lora_train.sampling.samplers import sampler_for
from lib_lora_train.training.lease import TURN_SECONDS, run_in_turns

_SAMPLER = "DDIM"
_LONGEST_NAME = 60


@dataclass(frozen=True)
class Wanted:
    """What to draw: a prompt, which is also the caption, and a size in px."""

    prompt: str
    width: int
    height: int


@dataclass(frozen=True)
class RegularisationImages:
    """The folders with the images, and how many of those that are wanted were drawn now, and how many before."""

    folders: tuple[Path, ...]
    drawn: int
    kept: int


def wanted_images(plan: Plan, config: TrainConfig, *, prompts: str, per_image: int = 1, total: int = 0) -> list[Wanted]:
    """`per_image` images for each training image, in its bucket's size; `total` sets their number in all instead.

    `prompts`: `class` is the class word, `captions` the captions with the class word in the trigger's place.
    DataError if `prompts` is `class` and a folder of the run has no class word.
    """
    items = [number for number in range(len(plan.dataset.items)) if not plan.is_regularisation(number)]
    each = [_wanted(plan, item, config, prompts) for item in items]
    count = total or per_image * len(each)
    return [each[number % len(each)] for number in range(count)]


def _wanted(plan: Plan, item: int, config: TrainConfig, prompts: str) -> Wanted:
    place = plan.placements[item]
    if prompts == "captions":
        return Wanted(class_caption(plan, fixed_caption_for(plan, item, config)), place.width, place.height)
    concept = plan.dataset.concepts[plan.dataset.items[item].concept]
    word = concept.settings.class_word.strip()
    if not word:
        raise DataError(f"{concept.name} has no class word to draw. Set class_word, such as dog, or draw the captions.")
    return Wanted(word, place.width, place.height)


def draw_regularisation_images(
    wanted: Sequence[Wanted], config: TrainConfig, host: Host, *, folder: Path, prompts: str, control: Control
) -> Generator[Event, None, RegularisationImages]:
    """Draw what is missing in `folder`, in turns under the host's lease; RunStoppedError when it is stopped.

    The steps and the guidance are the settings' for samples. OutputError if an image cannot be written.
    """
    model = host.load_model(config)
    root = folder / _model_folder(model)
    places = {one: root / ("captions" if prompts == "captions" else _safe_name(one.prompt)) for one in wanted}
    drawing = _Drawing(host, model, config, control)
    missing, kept = list[tuple[SamplePrompt, Path]](), 0
    for one, count in Counter(wanted).items():
        own = list(drawing.find_missing(one, count, places[one]))
        missing += own
        kept += count - len(own)
    yield Progress("samples", kept, len(wanted))
    done = kept
    for batch in _batches(missing):
        yield from drawing.draw(batch)
        done += len(batch)
        yield Progress("samples", done, len(wanted))
    return RegularisationImages(tuple(dict.fromkeys(places.values())), len(missing), kept)


@dataclass(frozen=True)
class _Drawing:
    """What all images of a command share."""

    host: Host
    model: DiffusionModel
    config: TrainConfig
    control: Control

    def find_missing(self, wanted: Wanted, count: int, folder: Path) -> Iterator[tuple[SamplePrompt, Path]]:
        """The images that are still to be drawn for `count` of them: their prompts with seeds, and their files."""
        seed, found = self.config.seed, 0
        while found < count:
            prompt = SamplePrompt(
                prompt=wanted.prompt,
                negative="",
                width=wanted.width,
                height=wanted.height,
                seed=seed,
                steps=self.config.sample_steps,
                cfg=self.config.sample_cfg,
            )
            path = folder / self._file_name(prompt)
            seed += 1
            if not path.exists() and path.with_suffix(".txt").exists():
                continue  # thrown out
            found += 1
            if read_infotext(path) != self._infotext(prompt) or read_image(path) is None:
                yield prompt, path
            elif not path.with_suffix(".txt").exists():  # interrupted in between
                atomic_write.write_text(path.with_suffix(".txt"), prompt.prompt + "\n")

    def _file_name(self, prompt: SamplePrompt) -> str:
        text = hashlib.sha256(prompt.prompt.encode()).hexdigest()[:8]
        return f"{prompt.width}x{prompt.height}-{text}-{prompt.seed}.png"

    def _infotext(self, prompt: SamplePrompt) -> str:
        sampler = sampler_for(self.model.schedule, _SAMPLER, self.host.sampler_options)
        return infotext(prompt, sampler=sampler, clip_skip=self.config.clip_skip, model=self.model.name)

    def draw(self, batch: Sequence[tuple[SamplePrompt, Path]]) -> Generator[Event, None, None]:
        """Draw images of one size and write them, each followed by its caption."""
        prompts = [prompt for prompt, _ in batch]
        options = self.host.sampler_options
        steps = sample_in_steps(
            self.model, prompts, sampler=_SAMPLER, clip_skip=self.config.clip_skip, sampler_options=options
        )
        within = partial(without_adapter, self.model)
        turns = run_in_turns(self.host, self.model, self.control, steps, within=within, turn_seconds=TURN_SECONDS)
        images = yield from events_of(turns)
        for (prompt, path), image in zip(batch, images, strict=True):
            write_image(path, image, self._infotext(prompt))
            atomic_write.write_text(path.with_suffix(".txt"), prompt.prompt + "\n")


def _batches(missing: Sequence[tuple[SamplePrompt, Path]]) -> Iterator[list[tuple[SamplePrompt, Path]]]:
    """Images of one size, as many as are drawn at a time."""
    sizes: dict[tuple[int, int], list[tuple[SamplePrompt, Path]]] = {}
    for one in missing:
        sizes.setdefault((one[0].width, one[0].height), []).append(one)
    for size, group in sizes.items():
        at_once = images_at_once(*size)
        for start in range(0, len(group), at_once):
            yield group[start : start + at_once]


def _model_folder(model: DiffusionModel) -> str:
    """The model's name and a hash of its identity, VAE and prediction type included."""
    identity = json.dumps(model.identity.values(), sort_keys=True)
    return f"{_safe_name(model.name)}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def _safe_name(text: str) -> str:
    """`text` as a folder's name: only characters that every file system allows, never empty."""
    return re.sub(r"[^\w ,()-]+", "_", text)[:_LONGEST_NAME].strip(" ._") or "images"
