"""The tensors of a layer as other programs shape them, in the shapes that this program computes with.

| program | differs in |
| --- | --- |
| PEFT, diffusers | DoRA's magnitude `lora_magnitude_vector`: (out,), for convolutions (1, out, 1, 1) |
| ai-toolkit | DoRA's magnitude `magnitude`: (out,) |
| OneTrainer | LoHa of convolutions with kernels: `hada_w1_a` (out, r, 1, 1), `hada_w1_b` (r, in, k, k) |

The name of a magnitude shows its axis; the shape does not, since (1, n, 1, 1) fits both on a square layer. `dora_scale`
has LyCORIS' shapes, (out, 1[, 1, 1]) or (1, in[, 1, 1]).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from lib_lora_train.adapters.files.key_formats import OUTPUT_MAGNITUDE

_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def in_our_layout(tensors: Mapping[str, Tensor], *, has_renamed_magnitudes: bool = False) -> dict[str, Tensor]:
    """A layer's tensors by ending; `has_renamed_magnitudes` is what that function says of the whole file."""
    changed = dict(tensors)
    magnitude = changed.pop(OUTPUT_MAGNITUDE, None)
    scale = changed.get("dora_scale")
    if magnitude is None and scale is not None and (scale.dim() == 1 or has_renamed_magnitudes):
        magnitude = scale
    if magnitude is not None:
        changed["dora_scale"] = _column(magnitude, like=tensors)
    if "hada_t1" not in changed:
        changed |= {
            ending: tensors[ending].flatten(1) for ending in _HADA if ending in tensors and _is_4d(tensors[ending])
        }
    return changed


def has_renamed_magnitudes(layers: Iterable[Mapping[str, Tensor]]) -> bool:
    """Whether a file's `dora_scale` are PEFT's magnitudes: those of linear layers have one dimension."""
    return any("dora_scale" in tensors and tensors["dora_scale"].dim() == 1 for tensors in layers)


def _column(magnitude: Tensor, *, like: Mapping[str, Tensor]) -> Tensor:
    """One magnitude per output channel as (out, 1), or (out, 1, 1, 1) beside the tensors of a convolution."""
    is_conv = _is_4d(magnitude) or any(_is_4d(tensor) for tensor in like.values())
    return magnitude.reshape(-1, *(1,) * (3 if is_conv else 1))


def _is_4d(tensor: Tensor) -> bool:
    return tensor.dim() == 4
