"""The loss of every training image of a run: at its end if that is cheap, and of a past run on request.

The losses are kept in the run's folder, and are rated by `evaluation/image_excess.py` when they are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

from lib_lora_train.adapters.file_on_model import FileOnModel, without_adapter
from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import HostError, MemoryFullError
from lib_lora_train.core.events import Event, Noted, Progress
from lib_lora_train.core.generators import WithResult
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.sample_captions import fixed_caption_for
from lib_lora_train.evaluation.fixed_loss import FixedLoss, affordable_timesteps, loss_of_every_image
from lib_lora_train.evaluation.image_excess import ImageLoss
from lib_lora_train.evaluation.image_likeness import nearest_images
from lib_lora_train.hosts.host import Host
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latent_cache import LatentCache
from lib_lora_train.runs.checks.model_check import load_same_model
from lib_lora_train.runs.measures.image_list import ImageList, describe_first, images_rated, write_images
from lib_lora_train.runs.planning import plan_run
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.history import FoundLora, read_loras
from lib_lora_train.runs.records.past_config import read_model, read_past_config, require_lora_run
from lib_lora_train.runs.run_context import RunContext, encode_images, time_phase
from lib_lora_train.training.lease import TURN_SECONDS, run_in_turns, run_leased

PASSES = 3
"""Losses of each image: with LoRA and caption, without the caption, and without both."""


Within = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class _Losses:
    """The loss of each item at each timestep, by number."""

    trained: Mapping[int, tuple[float, ...]]
    uncaptioned: Mapping[int, tuple[float, ...]]
    untrained: Mapping[int, tuple[float, ...]]

    def is_sound(self, item: int) -> bool:
        """Whether all losses of an item are numbers; a model in half precision may return NaN for one image."""
        losses = (*self.trained[item], *self.uncaptioned[item], *self.untrained[item])
        return all(0 < loss < math.inf for loss in losses)


@dataclass(frozen=True)
class _Place:
    """Where it is measured."""

    host: Host
    model: DiffusionModel
    control: Control

    def measure(
        self, losses: FixedLoss, within: Within, *, before: int = 0, captioned: bool = True
    ) -> Generator[Event, None, dict[int, tuple[float, ...]]]:
        """The losses inside `within`, as one of `PASSES`; `before` is how many samples were measured before."""
        work = losses.measure_in_turns(self.model, captioned=captioned)
        turns = WithResult(
            run_in_turns(self.host, self.model, self.control, work, within=within, turn_seconds=TURN_SECONDS)
        )
        for at in turns:
            yield Progress("evaluate", before + at, PASSES * losses.samples) if isinstance(at, int) else at
        return turns.result


def measure_images_at_end(run: RunContext, latents: LatentCache) -> Iterator[Event]:
    """Measure every image with what the run has learnt, if that takes at most 3% of the training's time.

    If memory is full, or the run is stopped meanwhile, nothing is kept.
    """
    timesteps = affordable_timesteps(run.plan, PASSES) if run.config.measure_steady_loss else ()
    losses = loss_of_every_image(run.plan, latents, run.config, timesteps) if timesteps else None
    if losses is None:
        return
    measuring = _measure(
        losses,
        _Place(run.host, run.model, run.control),
        with_lora=lambda: _both(run.adapter.enabled(True), run.eval_weights()),
        without_lora=lambda: run.adapter.enabled(False),
    )
    try:
        found = yield from time_phase("evaluate", PASSES * losses.samples, measuring)
    except MemoryFullError:
        yield Noted("warning", "", "The images were not measured because the memory is full. Results can do it later.")
        return
    images = _image_list(found, run.plan, latents, run.config, run.plan.epochs)
    write_images(run.folder, images)
    yield images_rated(images)
    if text := describe_first(images):
        yield Noted("hint", "", text)


def measure_past_run(folder: RunFolder, host: Host, control: Control) -> Generator[Event, None, ImageList]:
    """Measure every image of a run that has ended, with the LoRA file of its last epoch, and keep the result.

    HostError without a LoRA file, DataError if the images are gone, OtherModelError for another model; RunStoppedError
    when it is stopped.
    """
    config, file = read_past_config(folder), last_file(folder)
    plan = plan_run(config).plan
    model = yield from load_same_model(config, host, control, read_model(folder))
    latents = yield from encode_images(model, plan, config, host=host, folder=folder, control=control)
    losses = loss_of_every_image(plan, latents, config)
    if losses is None:
        raise HostError("This run has no images but those for regularisation, which are not measured.")
    lora = yield from run_leased(host, model, control, partial(FileOnModel, file=read_adapter(file.path)))
    place = _Place(host, model, control)
    measuring = _measure(losses, place, with_lora=lora.in_place, without_lora=lambda: without_adapter(model))
    found = yield from time_phase("evaluate", PASSES * losses.samples, measuring)
    images = _image_list(found, plan, latents, config, file.epoch)
    write_images(folder, images)
    yield images_rated(images)
    return images


def last_file(folder: RunFolder) -> FoundLora:
    """The newest LoRA file of the run that still exists; HostError if there is none, or files of another kind."""
    require_lora_run(folder)
    file = next((one for one in reversed(read_loras(folder)) if not one.is_missing), None)
    if file is None:
        raise HostError(f"{folder.root.name} has no LoRA file to measure its images with.")
    return file


# --- measuring ------------------------------------------------------------------------------------


def _measure(
    losses: FixedLoss, place: _Place, *, with_lora: Within, without_lora: Within
) -> Generator[Event, None, _Losses]:
    """All losses. Between batches the lease is free, and the model is as it was."""
    one = losses.samples
    untrained = yield from place.measure(losses, without_lora, captioned=False)
    trained = yield from place.measure(losses, with_lora, before=one)
    uncaptioned = yield from place.measure(losses, with_lora, before=2 * one, captioned=False)
    return _Losses(trained, uncaptioned, untrained)


def _image_list(found: _Losses, plan: Plan, latents: LatentCache, config: TrainConfig, epoch: int) -> ImageList:
    items = [item for item in found.trained if found.is_sound(item)]
    paths = {item: str(plan.dataset.items[item].image.path) for item in items}
    nearest = nearest_images({item: latents[item].mean for item in items})
    images = tuple(
        ImageLoss(
            path=paths[item],
            group=str(plan.dataset.concepts[plan.dataset.items[item].concept].folder),
            trained=found.trained[item],
            untrained=found.untrained[item],
            uncaptioned=found.uncaptioned[item],
            nearest=tuple((paths[other], alike) for other, alike in nearest[item]),
        )
        for item in items
    )
    return ImageList(epoch, images, {paths[item]: fixed_caption_for(plan, item, config) for item in items})


@contextmanager
def _both(first: AbstractContextManager[object], second: AbstractContextManager[object]) -> Iterator[None]:
    with first, second:
        yield
