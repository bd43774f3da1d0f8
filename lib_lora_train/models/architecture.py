"""What a model is, as data: its architecture, what it predicts, and the configs of its networks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Architecture = Literal["sd1", "sd2", "sdxl", "anima"]
PredictionType = Literal["epsilon", "v_prediction", "rectified_flow"]
Shapes = Mapping[str, tuple[int, ...]]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIXES = ("cond_stage_model.", "conditioner.embedders.0.", "conditioner.embedders.1.")

SCALE_FACTORS: Mapping[str, float] = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}

_RESOLUTIONS: Mapping[Architecture, int] = {"sd1": 512, "sd2": 768, "sdxl": 1024, "anima": 1024}


@dataclass(frozen=True)
class CheckpointHints:
    """What shapes do not show; None if unknown.

    `prediction_type` and `zero_terminal_snr` are decided by a webui or by a file beside the checkpoint; before them
    comes `path_says_rectified`: an SDXL model with "rectified" in its path is a rectified flow.
    `metadata_prediction_type` and `metadata_zero_terminal_snr` count only if the tensors say nothing.
    `unknown_prediction` is a word for the prediction type that is not known. `text_heads` has one number per text
    encoder; `unet_heads` is the number of heads on every level, `unet_head_dim` the width of one head. `resolution` is
    the side in px of the images that the model was trained on.
    """

    path_says_rectified: bool = False
    prediction_type: PredictionType | None = None
    zero_terminal_snr: bool | None = None
    metadata_prediction_type: PredictionType | None = None
    metadata_zero_terminal_snr: bool | None = None
    unknown_prediction: str = ""
    resolution: int | None = None
    scale_factor: float | None = None
    unet_heads: int | None = None
    unet_head_dim: int | None = None
    text_heads: tuple[int, ...] = ()


@dataclass(frozen=True)
class TextEncoderSpec:
    """One text encoder: where its tensors are, and its transformers config.

    `layout` "clip" has transformers' names, "open_clip" has q, k and v in one tensor. `pad_token` is what the webuis
    fill a chunk with after its end token. `has_linear_projection`: an OpenCLIP encoder's text projection is stored as a
    Linear layer's weight, as some mergers do, and not as OpenCLIP's transposed matrix.
    """

    layout: Literal["clip", "open_clip"]
    prefix: str
    config: Mapping[str, Any]
    has_projection: bool
    pad_token: int
    has_linear_projection: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """A whole model as data: `unet` and `vae` are diffusers configs, text encoders in webui order.

    `resolution` is the side in px of the images it was trained on, 0 for the architecture's usual one.
    `is_prediction_known`: the prediction type was stated, not assumed; `is_named_rectified`: by the path. `notes` are
    sentences about contradictions between the places that state it.
    """

    architecture: Architecture
    prediction_type: PredictionType
    zero_terminal_snr: bool
    scale_factor: float
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoders: tuple[TextEncoderSpec, ...]
    resolution: int = 0
    is_prediction_known: bool = True
    is_named_rectified: bool = False
    notes: tuple[str, ...] = ()

    @property
    def own_resolution(self) -> int:
        """The side in px of the square images that the model was trained on."""
        if self.architecture == "sd2" and not self.resolution:
            return 768 if self.prediction_type == "v_prediction" else 512
        return self.resolution or _RESOLUTIONS[self.architecture]


_Value = TypeVar("_Value")
_FLAT_CLIP = re.compile(
    r"^((?:cond_stage_model|conditioner\.embedders\.\d)\.transformer\.)(?=embeddings|encoder|final_layer_norm)"
)


def add_text_model_prefix(named: Mapping[str, _Value]) -> dict[str, _Value]:
    """The same values, with the `text_model.` that old SD1 files and transformers 5 omit from CLIP's names."""
    return {_FLAT_CLIP.sub(r"\1text_model.", name): value for name, value in named.items()}
