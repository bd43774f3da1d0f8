"""A run's images: samples during training and the grid at the end."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image

from lib_lora_train.config.method_catalog import name_in_prompt, named_word
from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.core.control import RunStoppedError
from lib_lora_train.core.errors import AdapterError, HostError, MemoryFullError, ModelUnavailableError, OutputError
from lib_lora_train.core.events import Event, GridDrawn, Noted, Progress, SampleDrawn, SamplesStarted
from lib_lora_train.core.generators import WithResult
from lib_lora_train.core.memory_errors import saving
from lib_lora_train.formats.lora_card import write_preview
from lib_lora_train.runs.checkpoints import try_write_card
from lib_lora_train.runs.images.webui_images import generate_in_webui, generation_request
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.history import epoch_name, step_name
from lib_lora_train.runs.run_context import RunContext, time_phase
from lib_lora_train.sampling.grid import compose_grid, epoch_rows
from lib_lora_train.sampling.infotext import infotext, read_image, write_image
from lib_lora_train.sampling.sample import sample_in_steps
from lib_lora_train.sampling.samplers import sampler_for
from lib_lora_train.training.lease import TURN_SECONDS, run_in_turns

_BATCH_SIZE = 4  # so that the first images appear early


def load_sample_rows(run: RunContext) -> None:
    """Load the samples a resumed run made before, if its prompts have not changed."""
    prompts = run.state.config.get("sample_prompts") if run.state else None
    if not run.prompts or list(run.config.sample_prompts) != prompts:
        return
    run.images.update(read_sample_rows(run.folder, len(run.prompts), (0, *run.history.losses)))


def read_sample_rows(folder: RunFolder, prompts: int, epochs: Iterable[int]) -> dict[int, list[Image.Image]]:
    """The samples of these epochs (0: without LoRA) by epoch, of those that have an image for each of the `prompts`."""
    rows = {}
    for epoch in epochs:
        images = [read_image(folder.sample(epoch, number)) for number in range(1, prompts + 1)]
        found = [image for image in images if image]
        if found and len(found) == prompts:
            rows[epoch] = found
    return rows


def generate_sample_row(run: RunContext, epoch: int, step: int = 0) -> Iterator[Event]:
    """Generate the sample prompts with the current adapter; epoch 0 is without it. `step`: samples within the epoch.

    If the webui cannot generate them or they do not fit into memory, that is only a warning. A stop ends them after a
    sampling step; the resumed run makes them again.
    """
    if not run.prompts:
        return
    moment = f"step {step}" if step else f"epoch {epoch}"
    yield SamplesStarted(epoch, step, len(run.prompts))
    try:
        yield from time_phase("samples", len(run.prompts), _generate_row(run, epoch, step))
    except RunStoppedError:
        yield Noted("hint", "", f"The samples of {moment} are incomplete because the run was stopped.")
        return
    except ModelUnavailableError:
        raise
    except MemoryFullError:
        text = f"The samples of {moment} were skipped because they did not fit into GPU memory. Use smaller images"
        yield Noted("warning", "sample_prompts", f"{text}: append --w 512 --h 512 to the prompt.")
        return
    except HostError as reason:
        yield Noted("warning", "webui_sampler", f"{reason} The samples of {moment} were skipped.")
        return
    except OutputError as reason:
        yield Noted("warning", "", f"{reason} Samples of {moment} are missing; the training continues.")
        return
    path = run.history.epoch_files().get(epoch)
    if path and not step:
        yield from try_write_card(
            run,
            path,
            partial(
                write_preview,
                path,
                partial(run.images[epoch][0].save, format="PNG"),
                is_embedding=bool(named_word(run.config)),
            ),
        )


def _generate_row(run: RunContext, epoch: int, step: int) -> Generator[Event, None, None]:
    row: list[Image.Image] = []
    total, batch = len(run.prompts), 1 if run.txt2img else _BATCH_SIZE
    for start in range(0, total, batch):
        prompts = run.prompts[start : start + batch]
        images = yield from _images(run, prompts, epoch, step, before=start)
        for prompt, (image, text) in zip(prompts, images, strict=True):
            row.append(image)
            path = run.folder.sample(epoch, len(row), step)
            with saving(path):
                write_image(path, image, text)
            yield SampleDrawn(str(path), epoch, prompt.prompt, prompt.seed, step, prompt.is_control)
        yield Progress("samples", len(row), total)
    if not step:
        run.images[epoch] = row


def _images(
    run: RunContext, prompts: Sequence[SamplePrompt], epoch: int, step: int, *, before: int
) -> Generator[Event, None, list[tuple[Image.Image, str]]]:
    """Each prompt's image and infotext: from the webui with a saved file, or from our sampler with the adapter.

    `before`: how many samples of the row are made already.
    """
    config, total = run.config, len(run.prompts)
    if run.txt2img:
        file = _lora_for_webui(run, epoch, step)
        request = generation_request(prompts[0], lora=file, clip_skip=config.clip_skip, word=named_word(config))
        generated = yield from generate_in_webui(run.txt2img, request, run.control, done=before, total=total)
        return [(generated.image, generated.infotext)]
    images = yield from _sampled(run, prompts, epoch, before=before)
    word = named_word(config)
    lora = step_name(run.name, step) if step else epoch_name(run.name, epoch) if epoch else ""
    text = partial(
        infotext,
        sampler=sampler_for(run.model.schedule, config.sample_sampler, run.host.sampler_options),
        clip_skip=config.clip_skip,
        model=run.model.name,
        lora="" if word else lora,
    )
    if word and lora:
        prompts = [replace(one, prompt=name_in_prompt(one.prompt, word, lora)) for one in prompts]
    texts = list(map(text, prompts))
    return list(zip(images, texts, strict=True))


def _sampled(
    run: RunContext, prompts: Sequence[SamplePrompt], epoch: int, *, before: int
) -> Generator[Event, None, list[Image.Image]]:
    """The images from our own sampler, with an event for every sampling step."""
    work = WithResult(
        sample_in_steps(
            run.model,
            prompts,
            sampler=run.config.sample_sampler,
            clip_skip=run.config.clip_skip,
            sampler_options=run.host.sampler_options,
        )
    )

    @contextmanager
    def with_adapter() -> Iterator[None]:
        with run.adapter.enabled(epoch > 0), run.eval_weights():
            yield

    def steps() -> Generator[Event, None, list[Image.Image]]:
        for at in work:
            yield Progress("samples", before + at.finished, len(run.prompts), at.at_once, at.step, at.steps)
        return work.result

    return (
        yield from run_in_turns(
            run.host, run.model, run.control, steps(), within=with_adapter, turn_seconds=TURN_SECONDS
        )
    )


def _lora_for_webui(run: RunContext, epoch: int, step: int) -> Path | None:
    """The LoRA file with the current weights; None for epoch 0."""
    if not epoch:
        return None
    epoch_file = None if step else run.history.epoch_files().get(epoch)
    newest = next(reversed(run.history.files.values()), None)
    file = epoch_file or (newest.path if newest else None)
    if file is None:
        raise HostError("The webui generates from LoRA files, and this run has not saved one yet.")
    return file


def draw_grid(run: RunContext) -> Iterator[Event]:
    """Compose the grid; if samples were off during training, generate them from the saved files first."""
    if not (run.config.make_grid and run.prompts):
        return
    if not run.config.sample_every_n_epochs:
        yield from _draw_missing_rows(run)
    if run.images:
        try:
            yield from time_phase("grid", 0, _compose(run))
        except (OutputError, MemoryError) as reason:
            text = str(reason) or "The grid does not fit into memory: it has too many epochs and prompts."
            yield Noted("warning", "make_grid", f"{text} The LoRA files and samples are complete.")


def _draw_missing_rows(run: RunContext) -> Iterator[Event]:
    """Generate the samples without LoRA, then those of the saved files; a resumed run has some of them already."""
    files = run.history.epoch_files()
    if 0 not in run.images:
        yield from generate_sample_row(run, 0)
    run.training = None  # the adapter now holds the files' weights
    for epoch, path in files.items():
        if epoch in run.images or run.control.is_stopped:
            continue
        try:
            run.adapter.load_file(path)
        except AdapterError as reason:  # deleted or replaced during the run
            yield Noted("warning", "make_grid", f"{reason} Epoch {epoch} is missing in the grid.")
            continue
        yield from generate_sample_row(run, epoch)


def _compose(run: RunContext) -> Generator[Event, None, None]:
    columns = [prompt.prompt for prompt in run.prompts]
    losses = {epoch: run.history.loss_text(epoch) for epoch in run.history.losses}
    rows = epoch_rows(dict(sorted(run.images.items())), losses)
    control = [place for place, prompt in enumerate(run.prompts) if prompt.is_control]
    grid = compose_grid(columns, rows, title=f"{run.name} on {run.model.name}", control=control)
    write_image(run.folder.grid, grid)
    yield GridDrawn(str(run.folder.grid))
