"""What a kind of model consists of, and the protocol that every kind implements in one file.

The rest of the program asks the kind, and not for its name. `docs/model-kinds.md` shows what a new kind needs.
Importing a kind does not import PyTorch: plans and estimates use its names before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lib_lora_train.models.latent_format import LatentFormat
from lib_lora_train.models.ldm_names import Source

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lib_lora_train.models.architecture import CheckpointHints, ModelSpec, Shapes
    from lib_lora_train.models.diffusion_model import DiffusionModel
    from lib_lora_train.models.text_encoding import TextCondition

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Network:
    """One network of a model, on the meta device; `source` maps its parameter names to tensors under `prefix`."""

    label: str
    prefix: str
    module: nn.Module
    source: Callable[[str], Source]


class ModelKind(Protocol):
    """How the models of one architecture are built, called and named; has no state, so one instance serves them all.

    The network that is trained, a UNet or a transformer, is called `unet` everywhere, as in kohya's scripts.
    """

    side_step: int
    """Image sides must be multiples of this number of px."""
    even_step: int
    """Image sides that are multiples of this number of px are never rounded inside the network."""
    families: frozenset[str] | None
    """The adapter families that webuis read for it; None: all."""
    flow_shift: float
    """The shift of σ with which images are drawn, where the model is a rectified flow."""
    prompt_tokens: int | None
    """How many tokens a prompt may have where a `PromptEncoder` reads it; None: it has CLIP's chunks."""
    has_unet_blocks: bool
    """Whether it is a UNet with kohya's block numbers, diffusion features and cross-attention at several sizes."""
    has_vae: bool
    """Whether its checkpoints contain a VAE, which another one can replace."""
    needs_webui: str
    """Why it can only be trained on the model that a webui has loaded, and what to do; "" if a checkpoint is enough."""

    def recognises(self, names: Collection[str]) -> bool:
        """Whether a checkpoint whose tensors have these names is of this kind."""
        ...

    def own_tensors(self, named: Mapping[str, _Value]) -> dict[str, _Value]:
        """A checkpoint's tensors under the names of a webui's memory; ModelError, saying what it is, if it is unusable.

        What the kind does not graft may be missing.
        """
        ...

    def infer_spec(self, shapes: Shapes, hints: CheckpointHints) -> ModelSpec:
        """The model with tensors of these names and shapes; ModelError, saying what it is instead, for another one."""
        ...

    def networks(self, spec: ModelSpec) -> Iterator[Network]:
        """The networks whose parameters are grafted: the UNet first, then the VAE and the text encoders, if any."""
        ...

    def latent_format(self, spec: ModelSpec) -> LatentFormat:
        """How the VAE's latents are scaled."""
        ...

    def plain_weight(self, unet: Any) -> Tensor:
        """A weight that no adapter replaces, from which device and dtype are read."""
        ...

    def predict(
        self, model: DiffusionModel, noisy: Tensor, timesteps: Tensor, condition: TextCondition, sizes: Tensor | None
    ) -> Tensor:
        """The prediction (B, C, h, w) for noisy latents of any float dtype at `timesteps` (B,), 0 to below 1000.

        `sizes` (B, 6) is SDXL's size conditioning; other kinds ignore it.
        """
        ...

    def is_target(self, name: str, targets: str) -> bool:
        """Whether the preset `targets` includes the UNet layer called `name`."""
        ...

    def is_norm_target(self, name: str, targets: str) -> bool:
        """Whether the preset includes the UNet norm called `name`, where norms are trained."""
        ...

    def lora_keys(self, names: Iterable[str]) -> Mapping[str, str]:
        """The UNet's module names → their names in LoRA files, in kohya's spelling; `names` holds every target."""
        ...

    def lora_paths(self, names: Iterable[str]) -> Mapping[str, str]:
        """The names of `lora_keys` → those in ComfyUI's spelling, for a kind whose files have these; else {}."""
        ...

    def lora_aliases(self, names: Iterable[str]) -> Mapping[str, str]:
        """Every name that files have for a UNet layer, in kohya's spelling → its name in `lora_keys`."""
        ...
