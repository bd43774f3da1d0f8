"""A run continues on the model that it was started on: another one is waited for, or refused by name."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any, NoReturn

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import ModelError, OtherModelError, OtherModelLoadedError
from lib_lora_train.core.events import Event, Noted
from lib_lora_train.hosts.host import Host
from lib_lora_train.models.checkpoint import model_hash
from lib_lora_train.models.diffusion_model import DiffusionModel, with_overrides
from lib_lora_train.models.loading import overrides_from_config
from lib_lora_train.models.model_files import model_name
from lib_lora_train.models.model_identity import ModelIdentity
from lib_lora_train.runs.records.past_config import config_as_trained
from lib_lora_train.training.wait_for_model import wait_for_model


def load_same_model(
    config: TrainConfig, host: Host, control: Control, expected: ModelIdentity | None
) -> Generator[Event, None, DiffusionModel]:
    """The model of the settings, if it is `expected` (None: any).

    If it is another one and the user selects models in the host, waits until the right one is loaded or the user
    accepts this one; otherwise OtherModelError, naming both. ModelUnavailableError when the run is stopped while it
    waits.
    """
    wrong: list[tuple[tuple[Path | None, Path | None], str]] = []

    def load() -> DiffusionModel:
        files = _files(host, config)
        if wrong and wrong[0][0] == files and not control.accepts_any_model:
            _wait_for_other_model(wrong[0][1])
        model = host.load_model(config)
        difference = expected.difference(model.identity) if expected else ""
        if not difference or control.accepts_any_model:
            return model
        if config.checkpoint or not host.follows_selection:
            advice = "Set the checkpoint to that file, or use --other-model to train on this one on purpose."
            raise OtherModelError(f"{difference} {advice}")
        wrong[:] = [(files, difference)]
        _wait_for_other_model(difference)

    model = yield from wait_for_model(control, load)
    if not expected or expected.difference(model.identity):
        return model
    kept = config_as_trained(config, expected)
    if with_overrides(model, overrides_from_config(kept)) is model:
        return model
    yield Noted("warning", "prediction_type", _kept_words(model, expected))
    return (yield from wait_for_model(control, lambda: host.load_model(kept)))


def _kept_words(model: DiffusionModel, expected: ModelIdentity) -> str:
    """What the model looks like now, and what it was taken for; they differ."""
    now, before = model.identity, expected
    if now.prediction_type != before.prediction_type and before.prediction_type:
        found, kept = now.prediction_type, before.prediction_type
    else:
        found, kept = f"zero_terminal_snr {now.zero_terminal_snr}", f"zero_terminal_snr {before.zero_terminal_snr}"
    return (
        f"{model.name} looks like {found} now, perhaps because its file was renamed. The run was started with {kept} "
        "and keeps it."
    )


def _wait_for_other_model(difference: str) -> NoReturn:
    raise OtherModelLoadedError(f"{difference} The run continues when it is loaded, with its VAE.")


def _files(host: Host, config: TrainConfig) -> tuple[Path | None, Path | None]:
    """The checkpoint and the VAE that a run would use now; cheap, unlike loading them."""
    target = host.run_target(config)
    return target.checkpoint, target.vae


def read_expected_model(host: Any, config: TrainConfig) -> ModelIdentity | None:
    """The model that a run with these settings would use now; None if that is unknown."""
    if host is None:
        return None
    checkpoint, vae = _files(host, config)
    try:
        return (
            ModelIdentity(model_name(checkpoint), model_hash(checkpoint), model_hash(vae) if vae else "")
            if checkpoint
            else None
        )
    except (OSError, ModelError):
        return None
