"""The images of a run: samples as it goes on, and the grid at its end."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.core.errors import HostError, MemoryFullError, ModelUnavailableError
from lib_lora_train.core.events import Event, GridDrawn, Noted, Progress, SampleDrawn
from lib_lora_train.formats.lora_card import write_preview
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.runs.checkpoints import try_write_card
from lib_lora_train.runs.history import epoch_name, step_name
from lib_lora_train.runs.run_context import RunContext, time_phase
from lib_lora_train.runs.webui_grid import generate_samples
from lib_lora_train.sampling.grid import compose_grid, epoch_rows
from lib_lora_train.sampling.infotext import infotext, write_image
from lib_lora_train.sampling.sample import sample_images
from lib_lora_train.training.lease import YieldLease, run_leased_cooperatively

_IMAGES_AT_ONCE = 4  # so that the first ones are soon to be seen


def load_sample_rows(run: RunContext) -> None:
    """Take the images that a resumed run drew before, if its prompts are still the same ones."""
    prompts = run.state.config.get("sample_prompts") if run.state else None
    if not run.prompts or list(run.config.sample_prompts) != prompts:
        return
    for epoch in (0, *run.history.losses):
        row = [run.folder.sample(epoch, number) for number in range(1, len(run.prompts) + 1)]
        if all(path.is_file() for path in row):
            run.images[epoch] = [_loaded(path) for path in row]


def _loaded(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def generate_sample_row(run: RunContext, epoch: int, step: int = 0) -> Iterator[Event]:
    """The sample prompts with the adapter as it stands; epoch 0 without it. `step`: within the epoch, as its own row.

    What the webui was to draw and could not is told, and harms nothing.
    """
    if not run.prompts:
        return
    moment = f"step {step}" if step else f"epoch {epoch}"
    try:
        yield from time_phase("samples", len(run.prompts), _draw_row(run, epoch, step))
    except ModelUnavailableError:
        raise
    except MemoryFullError:
        text = (
            f"The samples of {moment} did not fit into the graphics card's memory and are left out. Draw smaller ones"
        )
        yield Noted("warning", "sample_prompts", f"{text}: --w 512 --h 512 behind the prompt.")
        return
    except HostError as reason:
        yield Noted("warning", "webui_sampler", f"{reason} The samples of {moment} are left out.")
        return
    path = run.history.epoch_files().get(epoch)
    if path and not step:
        yield from try_write_card(run, path, partial(write_preview, path, run.images[epoch][0].save))


def _draw_row(run: RunContext, epoch: int, step: int) -> Generator[Event, None, None]:
    row: list[Image.Image] = []
    at_once = 1 if run.txt2img else _IMAGES_AT_ONCE
    for start in range(0, len(run.prompts), at_once):
        prompts = run.prompts[start : start + at_once]
        for prompt, (image, text) in zip(prompts, (yield from _images(run, prompts, epoch, step)), strict=True):
            row.append(image)
            path = run.folder.sample(epoch, len(row), step)
            write_image(path, image, text)
            yield SampleDrawn(str(path), epoch, prompt.prompt, prompt.seed, step)
        yield Progress("samples", len(row), len(run.prompts))
    if not step:
        run.images[epoch] = row


def _images(
    run: RunContext, prompts: Sequence[SamplePrompt], epoch: int, step: int
) -> Generator[Event, None, list[tuple[Image.Image, str]]]:
    """Each prompt's image and infotext: by the webui from a file, or by us with the adapter in place."""
    config = run.config
    if run.txt2img:
        painting = generate_samples(
            run.txt2img, prompts, lora=_file_to_draw(run, epoch), clip_skip=config.clip_skip, control=run.control
        )
        return [(painted.image, painted.infotext) for painted in (yield from painting)]
    drawn = yield from run_leased_cooperatively(run.host, run.model, run.control, partial(_draw, run, prompts, epoch))
    shared = {"sampler": config.sample_sampler, "model": run.model.name}
    lora = step_name(run.name, step) if step else epoch_name(run.name, epoch) if epoch else ""
    texts = [infotext(prompt, clip_skip=config.clip_skip, lora=lora, **shared) for prompt in prompts]
    return list(zip(drawn, texts, strict=True))


def _file_to_draw(run: RunContext, epoch: int) -> str:
    """The name of the LoRA file that holds the adapter as it stands; "" without."""
    if not epoch:
        return ""
    of_epoch = run.history.epoch_files().get(epoch)
    newest = next(reversed(run.history.files.values()), None)
    file = of_epoch or (newest.path if newest else None)
    if file is None:
        raise HostError("The webui draws from LoRA files, and the run has written none yet.")
    return file.stem


def _draw(
    run: RunContext, prompts: Sequence[SamplePrompt], epoch: int, model: DiffusionModel, yield_lease: YieldLease
) -> list[Image.Image]:
    with run.adapter.enabled(epoch > 0), run.eval_weights():
        return sample_images(
            model,
            prompts,
            sampler=run.config.sample_sampler,
            clip_skip=run.config.clip_skip,
            sampler_options=run.host.sampler_options,
            on_progress=lambda _done, _total: yield_lease(),
        )


def draw_grid(run: RunContext) -> Iterator[Event]:
    """The grid from the rows drawn while training; rows nobody asked for earlier are drawn from the files."""
    if not (run.config.make_grid and run.prompts):
        return
    if not run.config.sample_every_n_epochs:
        yield from generate_sample_row(run, 0)
        run.training = None  # from here on the adapter holds what the files hold
        for epoch, path in run.history.epoch_files().items():
            run.adapter.load_state(read_adapter(path).state)
            yield from generate_sample_row(run, epoch)
    if run.images:
        yield from time_phase("grid", 0, _compose(run))


def _compose(run: RunContext) -> Generator[Event, None, None]:
    columns = [prompt.prompt for prompt in run.prompts]
    losses = {epoch: run.history.loss_text(epoch) for epoch in run.history.losses}
    rows = epoch_rows(dict(sorted(run.images.items())), losses)
    write_image(run.folder.grid, compose_grid(columns, rows, title=f"{run.name} on {run.model.name}"))
    yield GridDrawn(str(run.folder.grid))
