"""The shapes that the tensors of a layer may have together, written as patterns such as `"r i *k"`.

A name stands for the same size in all patterns of a layout, a number for itself, `_` for any size, `*k` for a kernel
(two sizes or none), and `~` for a rest of ones. These names also have a meaning:

    o  outputs      i  inputs      *k  kernel      n  i · k · k      c  channels of a norm layer
    r  rank, or the size of a rotated block      q, p  ranks of a product's parts

The rank by which the webuis divide alpha is q if a layout has it, else p, else r.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

Layout = Mapping[str, str]
"""Short name of a tensor → pattern of its shape; a name that ends with `?` may be missing."""
Sizes = Mapping[str, int | tuple[int, ...]]
"""Name in a pattern → the size it stands for; several for a kernel."""
_RANKS = ("q", "p", "r")


def match_layout(weights: Mapping[str, Tensor], layouts: Sequence[Layout]) -> Sizes | None:
    """The sizes in the first layout that all tensors, by short name, fit together; None if they fit none."""
    shapes = {short: tuple(tensor.shape) for short, tensor in weights.items()}
    return next((sizes for layout in layouts if (sizes := _match(shapes, layout)) is not None), None)


def required_names(layouts: Sequence[Layout]) -> frozenset[str]:
    """The short names of the tensors that a layer has in every layout."""
    needed = [{name for name in layout if not name.endswith("?")} for layout in layouts]
    return frozenset(set.intersection(*needed)) if needed else frozenset()


def update_shape(sizes: Sizes) -> tuple[int, ...]:
    """The shape of ΔW, (out, in[, k, k]), (out, in · k · k) or (channels,); () if the sizes do not show it."""
    if "o" in sizes and "n" in sizes:
        return _flat(sizes["o"], sizes["n"])
    if "o" in sizes and "i" in sizes:
        return _flat(sizes["o"], sizes["i"], sizes.get("*k", ()))
    return _flat(sizes.get("c", ()))


def rank_of(sizes: Sizes) -> int:
    """The rank; for rotations the block size; 1 for families without either."""
    (found, *_) = _flat(*(sizes[name] for name in _RANKS if name in sizes), 1)
    return found


def _flat(*sizes: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(one for size in sizes for one in (size if isinstance(size, tuple) else (size,)))


def _match(shapes: Mapping[str, tuple[int, ...]], layout: Layout) -> Sizes | None:
    patterns = {name.removesuffix("?"): pattern for name, pattern in layout.items()}
    if not required_names([layout]) <= shapes.keys() <= patterns.keys():
        return None
    sizes: dict[str, int | tuple[int, ...]] = {}
    fits = all(_fits(shape, patterns[name].split(), sizes) for name, shape in shapes.items())
    return sizes if fits else None


def _fits(shape: tuple[int, ...], pattern: Sequence[str], sizes: dict[str, int | tuple[int, ...]]) -> bool:
    """Whether the shape matches the pattern; sizes that it names are added to `sizes`, or compared with them."""
    for position, symbol in enumerate(pattern):
        if symbol == "~":
            return set(shape[position:]) <= {1}
        if symbol.startswith("*"):
            kernel = shape[position:]
            return len(kernel) in (0, 2) and sizes.setdefault(symbol, kernel) == kernel
        if position >= len(shape):
            return False
        size = shape[position]
        expected: int | tuple[int, ...] = int(symbol) if symbol.isdecimal() else size
        if symbol != "_" and not symbol.isdecimal():
            expected = sizes.setdefault(symbol, size)
        if size != expected:
            return False
    return len(shape) == len(pattern)
