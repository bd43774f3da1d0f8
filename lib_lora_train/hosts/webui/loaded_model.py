"""What a webui has in memory, and how to say what changed about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_lora_train.core.errors import HostError, ModelError
from lib_lora_train.core.wording import join_names
from lib_lora_train.hosts.host import HeldWeights
from lib_lora_train.hosts.webui.copied_weights import held_weights
from lib_lora_train.models.architecture import CheckpointHints
from lib_lora_train.models.checkpoint import shapes_of
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.infer_spec import infer_spec
from lib_lora_train.models.model_files import read_checkpoint_info
from lib_lora_train.models.noise_schedule import DiffusionSchedule
from lib_lora_train.models.prediction_words import path_says_rectified
from lib_lora_train.models.prompt_encoder import PromptEncoder

_SCHEDULE_TOLERANCE = 1e-4  # hosts keep ᾱ in float32 or float16; ours is float64


@dataclass(frozen=True, eq=False)
class ModelFacts:
    """What a webui knows of its model beyond the tensors.

    `alphas_cumprod` (T,) is None for the architecture's usual schedule. `why_copied` is the reason why the tensors
    cannot be shared, "" if they can. `vae` and `prompt_encoder` are the webui's own, for kinds of models of which only
    the UNet is grafted.
    """

    hints: CheckpointHints
    alphas_cumprod: Tensor | None
    why_copied: str = ""
    vae: Any = None
    prompt_encoder: PromptEncoder | None = None


@dataclass(frozen=True)
class ModelIdentity:
    """What must stay equal for a run to continue; where the tensors are does not matter.

    `extra_files` are the VAE and the text encoders that were loaded beside the checkpoint, `stored_as` is the format of
    most of the UNet's weights ("float16", "nf4"), `kind` the webui's class of the model.
    """

    checkpoint: str
    extra_files: tuple[str, ...]
    stored_as: str
    kind: str

    def changed_to(self, now: ModelIdentity | None) -> str:
        """What is different now, and when the run continues, in two sentences; "" if nothing is."""
        name = Path(self.checkpoint).stem
        if now is None:
            return f"The webui now has no model loaded. The run continues when {name} is loaded again."
        if now.checkpoint != self.checkpoint or now.kind != self.kind:
            what = f"The webui now has {Path(now.checkpoint).stem} loaded, but the run trains {name}."
            return f"{what} It continues when {name} is loaded again, with {_files(self.extra_files)}."
        if now.extra_files != self.extra_files:
            what = f"The webui now has {name} loaded with {_files(now.extra_files)} instead of"
            return f"{what} {_files(self.extra_files)}. The run continues when that is changed back."
        if now.stored_as != self.stored_as:
            what = f"The webui now keeps the weights of {name} as {now.stored_as} instead of {self.stored_as}"
            return f"{what}. The run continues when that setting is changed back."
        return ""


def _files(extra: tuple[str, ...]) -> str:
    """`the VAE a.safetensors`, or both files of two; `its own VAE` if there is none."""
    if not extra:
        return "its own VAE"
    return "the VAE " + " and ".join(Path(file).name for file in extra)


@dataclass(frozen=True)
class Usability:
    """Why a loaded model cannot be trained, and why its weights would be read from the file; both "" if nothing is.

    `weights`: what they take if they are quantised.
    """

    problem: str = ""
    why_copied: str = ""
    weights: HeldWeights | None = None


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """What a webui has in memory.

    `vae` and `text_encoders` are files loaded beside the checkpoint. `is_quantized`: the UNet's weights are packed, so
    a run trains on unpacked copies of them. `facts()` raises ModelError for an unsupported architecture. `tensors()`
    returns the live tensors by ldm name; use their values only after `Webui.restore_weights`.
    """

    identity: ModelIdentity
    path: Path
    sha256: str
    vae: Path | None
    facts: Callable[[], ModelFacts]
    tensors: Callable[[], Mapping[str, Tensor]]
    text_encoders: tuple[Path, ...] = ()
    is_quantized: bool = False

    def hints(self, facts: ModelFacts) -> CheckpointHints:
        """The webui's hints, with the model's own resolution and "rectified" in its path, which only the file shows.

        Webuis that know no rectified flow take such a file for one that predicts the noise.
        """
        hints = replace(facts.hints, path_says_rectified=path_says_rectified(self.path))
        if hints.resolution:
            return hints
        with suppress(ModelError):  # the webui can load files that cannot be read here
            return replace(hints, resolution=read_checkpoint_info(self.path).spec.resolution or None)
        return hints

    def text_encoders_missing(self, why: str) -> str:
        """The error for a copy that has to be read from the file, which would lack the loaded text encoders."""
        names = join_names([file.name for file in self.text_encoders])
        return (
            f"The webui has {self.path.name} loaded with {names}, but the run would need to read a copy of the "
            f"checkpoint's file because {why}, and that copy would not have this text encoder. Train on the loaded "
            "weights: leave checkpoint and VAE empty and set precision to auto. Or use a checkpoint that contains its "
            "text encoders."
        )

    def usability(self, device: torch.device) -> Usability:
        """Whether a run can use the model, as at its start, without moving or loading anything."""
        weights = None
        try:
            facts = self.facts()
            if not facts.why_copied:
                tensors = self.tensors()
                spec = infer_spec(shapes_of(tensors), hints=facts.hints)
                weights = held_weights(tensors, spec, device) if self.is_quantized else None
        except (ModelError, HostError) as reason:
            return Usability(problem=str(reason))
        return Usability(why_copied=facts.why_copied, weights=weights)

    def trained_in(self, device: torch.device) -> str:
        """The precision that a run on these weights computes in, such as fp16; "" if it reads the file instead."""
        if device.type == "cpu":
            return "fp32"
        return {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}.get(self.identity.stored_as, "")


def stored_as(unet: Any) -> str:
    """The dtype of most of the UNet's matrices, such as `float16`; webuis keep norms and biases in another one."""
    dtypes = Counter(parameter.dtype for parameter in unet.parameters() if parameter.ndim > 1)
    return dtype_name(dtypes.most_common(1)[0][0]) if dtypes else ""


def dtype_name(dtype: object) -> str:
    """`torch.float16` as `float16`; names such as `nf4` are unchanged."""
    return str(dtype).removeprefix("torch.")


def with_schedule(model: DiffusionModel, alphas_cumprod: Tensor | None) -> DiffusionModel:
    """The model with the webui's noise schedule if it differs from the architecture's usual one."""
    if alphas_cumprod is None or not isinstance(model.schedule, DiffusionSchedule):
        return model
    theirs = alphas_cumprod.detach().to("cpu", torch.float64).clone()
    ours = model.schedule.alphas_cumprod
    if theirs.shape == ours.shape and torch.allclose(theirs, ours, rtol=0.0, atol=_SCHEDULE_TOLERANCE):
        return model
    return replace(model, schedule=replace(model.schedule, alphas_cumprod=theirs))


def is_same_file(named: Path | None, loaded: Path | None) -> bool:
    """Whether the file named by the settings is the loaded one; True if none is named."""
    return named is None or (loaded is not None and named.resolve() == loaded.resolve())
