"""What A1111 and Forge make of a LoRA file's tensors, written down from their documented formats, not from our code.

Both return ΔW at strength 1 for a base weight W in the dtype of the tensors, by differentiable operations.
`state` maps key endings (`lora_up.weight`, `alpha`, …) to the tensors of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def a1111_delta(state: State, base: Tensor) -> Tensor:
    """A1111 1.10.1: the first type whose keys are there; scale alpha / dim where the type has a dim; then DoRA."""
    formula = next((formula for needed, formula in _A1111 if _has(state, needed)), None)
    assert formula, f"no webui formula reads the keys {', '.join(state)}; see CONTRIBUTING, step 3"
    difference, dim = formula(state, base)
    if dim is not None and "alpha" in state:
        difference = difference * (float(state["alpha"]) / dim)
    difference = difference.reshape(base.shape)
    if "dora_scale" not in state:
        return difference
    merged = base + difference
    norm = _lengths(merged.transpose(0, 1))
    return merged * (state["dora_scale"] / norm.reshape(1, -1, *[1] * (base.dim() - 2))) - base


def _lengths(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    return lengths


def _has(state: State, needed: str) -> bool:
    return all(any(choice in state for choice in name.split("|")) for name in needed.split())


def _lora(state: State, base: Tensor) -> tuple[Tensor, int | None]:
    up, down = state["lora_up.weight"], state["lora_down.weight"]
    dim = down.shape[0]
    if "lora_mid.weight" in state:
        mid = state["lora_mid.weight"]
        return torch.einsum("nmkl,in,mj->ijkl", mid, up.flatten(1), down.flatten(1)), dim
    return up.reshape(up.shape[0], -1) @ down.reshape(dim, -1), dim


def _cp(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Tucker: T[i, j] in the middle, a (i, out), b (j, in)."""
    inner = torch.einsum("ijkl,jr->irkl", core, b)
    return torch.einsum("ijkl,ir->rjkl", inner, a)


def _hada(state: State, base: Tensor) -> tuple[Tensor, int | None]:
    w1a, w1b, w2a, w2b = (state[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    if "hada_t1" in state:
        product = _cp(state["hada_t1"], w1a, w1b) * _cp(state["hada_t2"], w2a, w2b)
    else:
        product = (w1a @ w1b) * (w2a @ w2b)
    return product, w1b.shape[0]


def _ia3(state: State, base: Tensor) -> tuple[Tensor, int | None]:
    weight = state["weight"]
    return base * (weight if bool(state["on_input"]) else weight.reshape(-1, 1)), None


def _lokr(state: State, base: Tensor) -> tuple[Tensor, int | None]:
    dim = None
    w1, w2 = state.get("lokr_w1"), state.get("lokr_w2")
    if w1 is None:
        dim = state["lokr_w1_b"].shape[0]
        w1 = state["lokr_w1_a"] @ state["lokr_w1_b"]
    if w2 is None:
        dim = state["lokr_w2_b"].shape[0]
        a, b = state["lokr_w2_a"], state["lokr_w2_b"]
        w2 = _cp(state["lokr_t2"], a, b) if "lokr_t2" in state else a @ b
    if w2.dim() == 4:
        w1 = w1[:, :, None, None]
    return torch.kron(w1, w2.contiguous()).reshape(base.shape), dim


def _full(state: State, base: Tensor) -> tuple[Tensor, int | None]:
    return state["diff"], None


def _norm(state: State, base: Tensor) -> tuple[Tensor, int | None]:
    assert "b_norm" in state
    return state["w_norm"], None


def _glora(state: State, base: Tensor) -> tuple[Tensor, int | None]:
    """The value of alpha counts for nothing: there is no dim."""
    low_rank = state["b2.weight"] @ state["b1.weight"]
    return low_rank + (base @ state["a2.weight"]) @ state["a1.weight"], None


def _oft(state: State, base: Tensor) -> tuple[Tensor, int | None]:
    """Cayley rotations, blockwise on the outputs; four dimensions are a butterfly. alpha is the constraint."""
    blocks = state["oft_blocks"]
    size = blocks.shape[-1]
    skew = blocks - blocks.transpose(-1, -2)
    bound = float(state["alpha"]) * base.shape[0]
    if bound:
        norm = torch.linalg.vector_norm(skew)
        skew = skew * ((norm.clamp(max=bound) + 1e-8) / (norm + 1e-8))
    eye = torch.eye(size, dtype=blocks.dtype)
    rotation = (eye + skew) @ (eye - skew).inverse()
    if blocks.dim() == 3:
        parts = [r.t() @ w.flatten(1) for r, w in zip(rotation, torch.split(base, size), strict=True)]
        turned = torch.cat(parts).reshape(base.shape)
    else:
        turned = base
        for stage, rotations in enumerate(rotation):
            turned = _butterfly_stage(turned, rotations, 2**stage * size // 2)
    if "rescale" in state:
        turned = turned * state["rescale"].reshape(-1, *[1] * (base.dim() - 1))
    return turned - base, None


def _butterfly_stage(rows: Tensor, rotations: Tensor, reach: int) -> Tensor:
    """Row c·2·reach + g·reach + k goes to place c·2·reach + k·2 + g, is turned in blocks there, and goes back."""
    flat = rows.flatten(1)
    place = torch.arange(len(flat)).reshape(-1, 2, reach).transpose(1, 2).flatten()
    size = rotations.shape[-1]
    turned = torch.cat([r @ w for r, w in zip(rotations, torch.split(flat[place], size), strict=True)])
    back = torch.empty_like(place)
    back[place] = torch.arange(len(place))
    return turned[back].reshape(rows.shape)


_A1111: tuple[tuple[str, Callable[[State, Tensor], tuple[Tensor, int | None]]], ...] = (
    ("lora_up.weight lora_down.weight", _lora),
    ("hada_w1_a hada_w1_b hada_w2_a hada_w2_b", _hada),
    ("weight", _ia3),
    ("lokr_w1|lokr_w1_a lokr_w2|lokr_w2_a", _lokr),
    ("diff", _full),
    ("w_norm b_norm", _norm),
    ("a1.weight a2.weight alpha b1.weight b2.weight", _glora),
    ("oft_blocks", _oft),
)


_FORGE: tuple[tuple[str, Callable[[State, Tensor], tuple[Tensor, int | None]]], ...] = (
    ("lora_up.weight lora_down.weight", _lora),
    ("hada_w1_a hada_w1_b hada_w2_a hada_w2_b", _hada),
    ("lokr_w1|lokr_w1_a lokr_w2|lokr_w2_a", _lokr),
)


def forge_delta(state: State, base: Tensor) -> Tensor | None:
    """Forge: None for what it does not load (IA³, OFT, BOFT, LoKr with Tucker, keys it does not know)."""
    if "weight" in state or "oft_blocks" in state or "lokr_t2" in state:
        return None
    if "diff" in state or "w_norm" in state:
        return state["diff"] if "diff" in state else state["w_norm"]
    if "a1.weight" in state:
        difference = _forge_glora(state, base)
    else:
        kind = next((kind for needed, kind in _FORGE if _has(state, needed)), None)
        if kind is None:
            return None
        difference, dim = kind(state, base)
        difference = difference.reshape(base.shape) * (
            1.0 if dim is None or "alpha" not in state else float(state["alpha"]) / dim
        )
    if "dora_scale" not in state:
        return difference
    return _forge_dora(state["dora_scale"], difference, base)


def _forge_glora(state: State, base: Tensor) -> Tensor:
    """Two layouts, told apart by shapes; alpha divided by the rank in both."""
    a1, a2, b1, b2 = (state[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    is_old = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
    fits_new = b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]
    if fits_new and not (is_old and a2.shape[0] == base.shape[0] == base.shape[1]):
        is_old = False
    scale = float(state["alpha"]) / (a1.shape[0] if is_old else a2.shape[0])
    low_rank = b2 @ b1 if is_old else b1 @ b2
    through = base @ a2 @ a1 if is_old else base @ a1 @ a2
    return (low_rank + through) * scale


def _forge_dora(magnitude: Tensor, difference: Tensor, base: Tensor) -> Tensor:
    """By the base's own norms if the magnitude is per output, by the sum's if it is per input."""
    merged = base + difference
    if magnitude.shape[0] == base.shape[0]:
        norm = _lengths(base).reshape(-1, *[1] * (base.dim() - 1))
    else:
        norm = _lengths(merged.transpose(0, 1)).reshape(1, -1, *[1] * (base.dim() - 2))
    return merged * (magnitude / (norm + torch.finfo(base.dtype).eps)) - base
