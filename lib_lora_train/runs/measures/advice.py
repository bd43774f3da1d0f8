"""The advice at the end of a run, or for a past one: tests strengths, then names an epoch."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import asdict

from lib_lora_train.config.architecture_titles import TITLES
from lib_lora_train.config.sample_prompts import sample_prompts
from lib_lora_train.core.control import Control, RunStoppedError
from lib_lora_train.core.errors import AdapterError, HostError, MemoryFullError, OutputError
from lib_lora_train.core.events import Advised, Event, Noted
from lib_lora_train.evaluation.advisor import Advice, Measured, advise, advise_by_losses
from lib_lora_train.hosts.host import Host
from lib_lora_train.runs.checks.model_check import load_same_model
from lib_lora_train.runs.images.samples import read_sample_rows
from lib_lora_train.runs.measures.strength_test import StrengthTest
from lib_lora_train.runs.planning import plan_run
from lib_lora_train.runs.records.event_log import read_log
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.history import read_loras, read_records
from lib_lora_train.runs.records.past_config import read_model, read_past_config
from lib_lora_train.runs.run_context import RunContext, time_phase

_NO_LOSSES = (
    "{run}: samples of {title} cannot be compared with the training images, which needs the features of a UNet, and "
    "there is no validation loss that fell. Choose an epoch by the grid, or train again with validation_share."
)


def advise_run(run: RunContext) -> Iterator[Event]:
    """Test the strengths of a run that has just been trained, and name an epoch.

    What goes wrong is a warning: the run has all of its files.
    """
    if run.control.is_stopped:
        return
    if not run.model.kind.has_unet_blocks:
        found = advise_by_losses(run.history.measured, run.history.epoch_files().keys())
        yield from [_event(found)] if found else []
        return
    if not run.config.test_strengths:
        return
    test = StrengthTest(
        host=run.host,
        model=run.model,
        control=run.control,
        config=run.config,
        folder=run.folder,
        plan=run.plan,
        files=run.history.epoch_files(),
        samples=run.images,
        txt2img=run.txt2img,
        trials=list(run.history.trials),
    )
    try:
        yield from time_phase("strengths", 0, test.run())
    except RunStoppedError:
        yield Noted("hint", "", "The strength test is incomplete because the run was stopped.")
        return
    except (AdapterError, HostError, MemoryFullError, OutputError) as reason:
        yield Noted("warning", "test_strengths", f"{reason} The strength test is incomplete; all files are saved.")
    advice = _advice(test, run.history.measured)
    if advice:
        yield _event(advice)


def advise_past_run(folder: RunFolder, host: Host, control: Control) -> Generator[Event, None, None]:
    """Test the strengths of the run in a folder, as far as that was not done, and name an epoch.

    Where samples are missing or cannot be compared, the validation loss decides. Needs the model, the images and the
    samples of the run; HostError or DataError if they are gone. RunStoppedError when it is stopped,
    ModelUnavailableError when it is stopped while another model is loaded.
    """
    config = read_past_config(folder)
    history = read_records(read_log(folder.log))
    files = {file.epoch: file.path for file in read_loras(folder) if file.epoch and not file.is_missing}
    samples = read_sample_rows(folder, len(sample_prompts(config)), (0, *files))
    by_losses = advise_by_losses(history.measured, files.keys())
    has_samples = 0 in samples and len(samples) > 1
    if by_losses is None and not has_samples:
        raise HostError(
            f"{folder.root.name} has no samples of its epochs to compare. Train it again with sample_every_n_epochs on."
        )
    plan = plan_run(config).plan
    model = yield from load_same_model(config, host, control, read_model(folder))
    if not (model.kind.has_unet_blocks and has_samples):
        if by_losses is None:
            raise HostError(_NO_LOSSES.format(run=folder.root.name, title=TITLES[model.spec.architecture]))
        yield _event(by_losses)
        return
    test = StrengthTest(
        host=host,
        model=model,
        control=control,
        config=config,
        folder=folder,
        plan=plan,
        files=files,
        samples=samples,
        trials=list(history.trials),
    )
    yield from time_phase("strengths", 0, test.run())
    advice = _advice(test, history.measured)
    if advice is None:
        raise HostError(
            f"Likeness has no scale in {folder.root.name}: its samples without LoRA look as much like the training "
            "images as these look like each other. Choose an epoch by its grid."
        )
    yield _event(advice)


def _advice(test: StrengthTest, measured: Measured) -> Advice | None:
    """From the trials of those epochs that still have a file."""
    return advise([trial for trial in test.trials if trial.epoch in test.files], measured)


def _event(advice: Advice) -> Advised:
    return Advised(**asdict(advice))
