"""The checkpoint of a planned run: what it is, and what speaks against training on it with these settings.

Does not import PyTorch, except for a run that continues a LoRA file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.prediction import prediction_problems
from lib_lora_train.core.errors import ModelError, Problem, VaeError
from lib_lora_train.hosts.host import RunTarget
from lib_lora_train.models.architecture import ModelSpec
from lib_lora_train.models.kinds.registry import kind_of
from lib_lora_train.models.model_files import describe_model, model_name, read_checkpoint_info
from lib_lora_train.runs.checks.form_check import form_problems
from lib_lora_train.runs.checks.kind_checks import kind_problems

if TYPE_CHECKING:
    from lib_lora_train.models.diffusion_model import DiffusionModel


@dataclass(frozen=True)
class CheckpointCheck:
    """A sentence about the run's model, "" if nothing is known; its own resolution, 0 if unknown; and all problems."""

    description: str = ""
    resolution: int = 0
    problems: tuple[Problem, ...] = ()


_SDXL_LAYER = 2  # SDXL is always trained with the layer before the last
NO_CHECKPOINT = CheckpointCheck()
MODEL_NOTE = "The model: "
"""How the note in a run's log begins that says what its model is."""


def check_checkpoint(config: TrainConfig, target: RunTarget) -> CheckpointCheck:
    """The model that the run would train on, checked as at the start of the run, from the header of its file.

    A webui's loaded model needs no readable file, so its file is only described. It may also be able to load what
    cannot be read here, so a model that is only selected there is warned about.
    """
    if target.checkpoint is None:
        return CheckpointCheck(problems=_file_problems(config, target))
    if target.problem:
        problem = Problem("error", "checkpoint", target.problem)
        return CheckpointCheck(model_name(target.checkpoint), problems=(problem,))
    try:
        info = read_checkpoint_info(target.checkpoint, target.vae)
    except ModelError as reason:
        if target.is_loaded:
            return CheckpointCheck(model_name(target.checkpoint), problems=_file_problems(config, target))
        where = "vae" if isinstance(reason, VaeError) else "checkpoint"
        if target.is_selected:
            text = f"{reason} The webui has not loaded it yet; if it can, generate an image and check again."
            return CheckpointCheck(problems=(Problem("warning", where, text),))
        return CheckpointCheck(problems=(Problem("error", where, str(reason)),))
    precision = _precision(info.precision, _trained_in(config, target, info.precision))
    description = f"{info.name}: {describe_model(info.spec, vae=info.vae, precision=precision)}{_in_webui(target)}"
    problems = (
        *checkpoint_problems(info.spec, config),
        *_clip_skip_problems(info.spec, config, target),
        *_file_problems(config, target, info.spec),
    )
    needs_webui = kind_of(info.spec.architecture).needs_webui
    if needs_webui and not target.is_loaded:
        problems = (Problem("error", "checkpoint", f"{info.name}: {needs_webui}"),)
    return CheckpointCheck(description, info.spec.own_resolution, problems)


def _file_problems(config: TrainConfig, target: RunTarget, spec: ModelSpec | None = None) -> tuple[Problem, ...]:
    """What speaks against the file that the run continues, which PyTorch must open, and against those it writes."""
    problems = tuple(form_problems(config, target.webui, spec))
    if not config.continue_from or any(problem.level == "error" for problem in problems):
        return problems
    from lib_lora_train.runs.checks.continued_file import continued_file_problems

    return (*continued_file_problems(config, spec), *problems)


def _clip_skip_problems(spec: ModelSpec, config: TrainConfig, target: RunTarget) -> Iterator[Problem]:
    """The host generates with another layer of the text encoder than the run trains with."""
    theirs = target.clip_skip
    if not theirs or not kind_of(spec.architecture).has_unet_blocks:
        return
    if spec.architecture == "sdxl":
        if target.applies_clip_skip_to_sdxl and theirs > _SDXL_LAYER:
            text = f"is {theirs} in the webui's settings, which applies it to SDXL too. Set it to 2 there for images."
            yield Problem("hint", "clip_skip", text)
    elif theirs != config.clip_skip:
        text = f"is {config.clip_skip} here and {theirs} in the webui's settings. Use the same number for images."
        yield Problem("hint", "clip_skip", text, (("clip_skip", theirs),))


def resolution_settings(own: int) -> dict[str, int]:
    """The training resolution and bucket limits for a model of this resolution; {} for the defaults, or if unknown."""
    if own in (0, TrainConfig().resolution):
        return {}
    return {"resolution": own, "min_bucket": own // 2, "max_bucket": own * 2}


def precision_of(model: DiffusionModel) -> str:
    """In what the model computes, in the words of the settings: fp32, bf16, fp16."""
    return str(model.dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp")


def describe_loaded(model: DiffusionModel, target: RunTarget) -> str:
    """What a loaded model was found to be, in the words of `check_checkpoint`."""
    stored, trained_in = "", precision_of(model)
    if model.path:
        with suppress(ModelError):  # the file may be gone
            stored = read_checkpoint_info(model.path).precision
    vae = target.vae.name if target.vae else ""
    return describe_model(model.spec, vae=vae, precision=_precision(stored, trained_in)) + _in_webui(target)


def _in_webui(target: RunTarget) -> str:
    """`, in Forge Neo 2.26`; "" stand-alone."""
    return f", in {target.webui}" if target.webui else ""


def _precision(stored: str, trained_in: str) -> str:
    """`fp16`, or `fp16 file, trained in fp32`."""
    return trained_in if stored in ("", trained_in) else f"{stored} file, trained in {trained_in}"


def _trained_in(config: TrainConfig, target: RunTarget, stored: str) -> str:
    """The precision that the run would compute in."""
    if config.precision != "auto":
        return config.precision
    if target.dtype_bytes == 4:
        return target.precision or "fp32"
    return target.precision or ("fp16" if stored == "fp8" else stored)


def checkpoint_problems(spec: ModelSpec, config: TrainConfig) -> Iterator[Problem]:
    """What speaks against these settings on this model."""
    yield from kind_problems(spec, config)
    if config.prediction_type == "auto":
        yield from (Problem("warning", "prediction_type", note) for note in spec.notes)
    predicts = spec.prediction_type if config.prediction_type == "auto" else config.prediction_type
    is_known = spec.is_prediction_known or spec.architecture != "sd2"
    if config.prediction_type == "auto" and is_known:
        yield from prediction_problems(config, predicts)
    if config.zero_terminal_snr == "auto" and spec.zero_terminal_snr and predicts == "epsilon" and is_known:
        text = (
            "is on, because the checkpoint says so, but it predicts the noise (epsilon), which teaches nothing at pure "
            "noise. One of the two is probably wrong: set prediction_type to v_prediction, or zero_terminal_snr to off."
        )
        yield Problem("warning", "zero_terminal_snr", text, (("zero_terminal_snr", "off"),))
    if spec.architecture == "sdxl" and config.clip_skip > 1:
        text = "has no effect on SDXL, which always uses the layer before the last. Set it to 1, here and in prompts."
        yield Problem("warning", "clip_skip", text)
