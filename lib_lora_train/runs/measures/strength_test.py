"""Draws epochs of a run at several strengths and measures the images, as the advisor asks for them.

The images at strength 1 are the run's samples. Every other one is kept in the run's folder, so that a test which was
stopped continues where it was.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

from lib_lora_train.adapters.file_on_model import FileOnModel, without_adapter
from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.config.method_catalog import named_word
from lib_lora_train.config.sample_prompts import SamplePrompt, prompt_groups, sample_prompts
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import DataError
from lib_lora_train.core.events import Event, Progress, StrengthTested
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.evaluation.image_change import change, difference_of_prompts, roughness_ratio
from lib_lora_train.evaluation.strength_search import Trial, TrialPlace, next_place
from lib_lora_train.hosts.host import Host, Txt2Img
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.runs.images.drawing import Row, events_of
from lib_lora_train.runs.images.webui_images import generate_in_webui, generation_request
from lib_lora_train.runs.measures.sample_measures import MAX_SAMPLES, SampleMeasures, sample_measures
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.sampling.infotext import infotext, read_image, write_image
from lib_lora_train.sampling.sample import sample_in_steps
from lib_lora_train.sampling.samplers import sampler_for
from lib_lora_train.training.lease import TURN_SECONDS, YieldLease, run_in_turns, run_leased, run_leased_cooperatively


@dataclass(eq=False)
class StrengthTest:
    """Tests the epochs of a run that have a LoRA file in `files` and a row of samples, for all prompts, in `samples`.

    `txt2img` is the webui's sampler if the samples are from it. `trials` has those made before, and then all of them.
    """

    host: Host
    model: DiffusionModel
    control: Control
    config: TrainConfig
    folder: RunFolder
    plan: Plan
    files: Mapping[int, Path]
    samples: Mapping[int, Row]
    txt2img: Txt2Img | None = None
    trials: list[Trial] = field(default_factory=list)
    _file: tuple[Path, FileOnModel] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        groups = prompt_groups(self.config)
        self._places = (*groups.concept[:MAX_SAMPLES], *groups.control[:MAX_SAMPLES])
        self._concepts = len(groups.concept[:MAX_SAMPLES])
        self._prompts = [sample_prompts(self.config)[place] for place in self._places]
        self._measures: SampleMeasures = sample_measures(
            self.plan, self.config, self.folder, places=range(self._concepts)
        )

    def run(self) -> Generator[Event, None, None]:
        """Make the trials that the advisor asks for.

        Nothing is made of a run without samples of its concept, and where likeness has no scale. RunStoppedError when
        it is stopped; other errors as of samples.
        """
        epochs = sorted(self.files.keys() & self.samples.keys() - {0})
        if 0 not in self.samples or not self._concepts:
            return
        while place := self._next_place(epochs):
            row, images = yield from self._row(place)
            trial = yield from self._measure(place, row)
            if trial is None:
                return
            self.trials.append(trial)
            yield StrengthTested(trial.epoch, trial.strength, trial.likeness, trial.change, trial.roughness, images)

    def _next_place(self, epochs: Sequence[int]) -> TrialPlace | None:
        """What to try next; an embedding has no strength, so only its epochs are compared."""
        if not named_word(self.config):
            return next_place(self.trials, epochs)
        tried = {trial.epoch for trial in self.trials}
        return next((TrialPlace(epoch, 1.0) for epoch in epochs if epoch not in tried), None)

    # --- images ---------------------------------------------------------------------------------

    def _samples(self, epoch: int) -> Row:
        """The run's samples of an epoch (0: without LoRA) that count here."""
        return [self.samples[epoch][place] for place in self._places]

    def _row(self, place: TrialPlace) -> Generator[Event, None, tuple[Row, tuple[str, ...]]]:
        """The images of an epoch at a strength, and where those are that were drawn for it."""
        if place.strength == 1.0:
            return self._samples(place.epoch), ()
        paths = [self.folder.strength_sample(place.epoch, place.strength, at + 1) for at in self._places]
        row = [self._kept(path, self.files[place.epoch]) for path in paths]
        missing = [number for number, image in enumerate(row) if image is None]
        at_once = 1 if self.txt2img else MAX_SAMPLES
        for start in range(0, len(missing), at_once):
            numbers = missing[start : start + at_once]
            drawn = yield from self._draw(place, [self._prompts[number] for number in numbers])
            for number, (image, text) in zip(numbers, drawn, strict=True):
                write_image(paths[number], image, text)
                row[number] = image
            yield Progress("strengths", len(row) - len(missing) + start + len(numbers), len(row))
        return [image for image in row if image], tuple(map(str, paths))

    def _kept(self, path: Path, lora: Path) -> Image.Image | None:
        """The image that was drawn before, unless the LoRA file is newer."""
        try:
            return read_image(path) if path.stat().st_mtime_ns >= lora.stat().st_mtime_ns else None
        except OSError:  # one of them is missing
            return None

    def _draw(
        self, place: TrialPlace, prompts: Sequence[SamplePrompt]
    ) -> Generator[Event, None, list[tuple[Image.Image, str]]]:
        """The images of these prompts with their infotexts; from the webui one at a time."""
        config, path = self.config, self.files[place.epoch]
        if self.txt2img:
            request = partial(generation_request, lora=path, clip_skip=config.clip_skip, strength=place.strength)
            made = yield from generate_in_webui(self.txt2img, request(prompts[0]), self.control, done=0, total=1)
            return [(made.image, made.infotext)]
        lora = yield from self._lora(path)
        drawing = sample_in_steps(
            self.model,
            prompts,
            sampler=config.sample_sampler,
            clip_skip=config.clip_skip,
            sampler_options=self.host.sampler_options,
        )
        images: Row = yield from events_of(
            run_in_turns(
                self.host,
                self.model,
                self.control,
                drawing,
                within=lambda: lora.in_place(place.strength),
                turn_seconds=TURN_SECONDS,
            )
        )
        sampler = sampler_for(self.model.schedule, config.sample_sampler, self.host.sampler_options)
        text = partial(infotext, sampler=sampler, clip_skip=config.clip_skip, model=self.model.name)
        return [
            (image, text(one, lora=path.stem, strength=place.strength))
            for image, one in zip(images, prompts, strict=True)
        ]

    def _lora(self, path: Path) -> Generator[Event, None, FileOnModel]:
        """The file on the model; the newest one is kept."""
        if self._file is None or self._file[0] != path:
            put = partial(FileOnModel, file=read_adapter(path))
            self._file = path, (yield from run_leased(self.host, self.model, self.control, put))
        return self._file[1]

    # --- measures -------------------------------------------------------------------------------

    def _measure(self, place: TrialPlace, row: Row) -> Generator[Event, None, Trial | None]:
        """The trial; None if likeness has no scale in this run."""
        before = self._samples(0)

        def measure_likeness(model: DiffusionModel, yield_lease: YieldLease) -> tuple[float, ...]:
            with without_adapter(model):
                try:
                    return self._measures.likeness_of_each(model, before, row, yield_lease)
                except DataError:  # an image that the VAE cannot encode was reported before
                    return ()

        likeness = yield from run_leased_cooperatively(self.host, self.model, self.control, measure_likeness)
        if not likeness:
            return None
        one, first = difference_of_prompts(before), self._concepts
        changes = [change(*pair, one) for pair in zip(before[first:], row[first:], strict=True)]
        return Trial(*place, likeness, tuple(changes), roughness_ratio(before, row))
