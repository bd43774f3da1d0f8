"""Count what autograd saves during a forward pass, from sizes alone. Does not import PyTorch.

`Trace` imitates autograd: each operation takes the sizes of its inputs, returns the size of its output and records what
its backward pass will need. `forward_trace` runs the UNet on it. What each operation saves is listed in PyTorch's
derivatives.yaml; for an adapted layer it is what the adapter's `forward` and `adapters.delta_autograd` save.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SavedForBackward:
    """What an adapted layer saves for its backward pass: its input or not, and `more` values per position."""

    saves_input: bool = True
    more: int = 0


SavedByName = Callable[[str], "SavedForBackward | None"]
"""Layer name → what it saves, None for a frozen layer."""


@dataclass(frozen=True, eq=False)
class Activation:
    """A tensor of one sample: `width` values at each of `positions` positions.

    `requires_grad`: a gradient will flow through it. `storage`: the tensor whose memory it shares, if not its own.
    """

    width: int
    positions: int
    requires_grad: bool = False
    storage: Activation | None = None

    @property
    def size(self) -> int:
        """Number of values."""
        return self.width * self.positions


@dataclass(frozen=True)
class Layer:
    """A layer with a weight: Linear or convolution (outputs, inputs[, kernel, kernel]) or norm (outputs,)."""

    name: str
    outputs: int
    inputs: int = 0
    kernel: int = 0
    has_bias: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        if not self.inputs:
            return (self.outputs,)
        return (self.outputs, self.inputs, self.kernel, self.kernel) if self.kernel else (self.outputs, self.inputs)


@dataclass
class Trace:
    """A forward pass: its layers so far, and what is saved for the backward pass."""

    adapted: SavedByName
    checkpointing: bool = False
    layers: list[Layer] = field(default_factory=list)
    _recompute_peak: int = 0
    _saved: dict[int, Activation] = field(default_factory=dict)

    @property
    def saved(self) -> int:
        """Number of values saved for the backward pass, per sample."""
        return sum(value.size for value in self._saved.values())

    @property
    def peak(self) -> int:
        """The most values held at once during the backward pass, per sample, without its temporary tensors.

        When a checkpoint is recomputed, what was saved after it has already been freed.
        """
        return max(self.saved, self._recompute_peak)

    def save(self, *values: Activation) -> None:
        """Record that the backward pass needs these; tensors that share memory count once."""
        for value in values:
            storage = value.storage or value
            self._saved[id(storage)] = storage

    @contextmanager
    def checkpoint(self, *inputs: Activation) -> Iterator[None]:
        """A checkpoint: of what is saved inside, only the inputs are kept and the rest is recomputed."""
        if not self.checkpointing:
            yield
            return
        outer, self._saved = self._saved, {}
        yield
        inner, self._saved = self._saved, outer
        if inner:
            self.save(*inputs)
            fresh = sum(value.size for key, value in inner.items() if key not in self._saved)
            self._recompute_peak = max(self._recompute_peak, self.saved + fresh)

    # --- operations ----------------------------------------------------------------------------
    def norm(self, name: str, x: Activation) -> Activation:
        """GroupNorm or LayerNorm: saves its input (and two values per group or row, not counted)."""
        self.layers.append(Layer(name, x.width))
        requires_grad = x.requires_grad or self.adapted(name) is not None
        if requires_grad:
            self.save(x)
        return Activation(x.width, x.positions, requires_grad)

    def plain_norm(self, x: Activation) -> Activation:
        """A norm without weights: saves its input."""
        if x.requires_grad:
            self.save(x)
        return Activation(x.width, x.positions, x.requires_grad)

    def rms_norm(self, x: Activation, *, is_half: bool) -> Activation:
        """diffusers' RMSNorm, frozen: saves its input, and where that is 16-bit, an fp32 copy of it too."""
        if x.requires_grad:
            self.save(x)
            if is_half:
                self.save(Activation(2 * x.width, x.positions))
        return Activation(x.width, x.positions, x.requires_grad)

    def silu(self, x: Activation) -> Activation:
        """SiLU or GELU: saves its input."""
        if x.requires_grad:
            self.save(x)
        return Activation(x.width, x.positions, x.requires_grad)

    def weight_layer(self, layer: Layer, x: Activation, positions: int = 0) -> Activation:
        """Linear or convolution; an adapted layer saves what its adapter needs.

        A frozen Linear saves nothing. A frozen convolution saves its input without needing it, because its backward
        pass computes all three gradients in one function.
        """
        self.layers.append(layer)
        saves = self.adapted(layer.name)
        positions = positions or x.positions
        if (saves and saves.saves_input) or (layer.kernel and x.requires_grad):
            self.save(x)
        if saves and saves.more:
            self.save(Activation(saves.more, positions))
        return Activation(layer.outputs, positions, x.requires_grad or saves is not None)

    def linear(self, name: str, x: Activation, outputs: int, *, has_bias: bool = True) -> Activation:
        """`weight_layer` for a Linear layer."""
        return self.weight_layer(Layer(name, outputs, x.width, has_bias=has_bias), x)

    def conv(self, name: str, x: Activation, outputs: int, *, kernel: int = 3, positions: int = 0) -> Activation:
        """`weight_layer` for a convolution; `positions` where it changes the number of positions."""
        return self.weight_layer(Layer(name, outputs, x.width, kernel), x, positions)

    def geglu(self, x: Activation) -> Activation:
        """GEGLU (Shazeer 2020): half of `x` times the GELU of its other half; saves `x` and that GELU."""
        half = x.width // 2
        if x.requires_grad:
            self.save(x, Activation(half, x.positions))
        return Activation(half, x.positions, x.requires_grad)

    def quick_gelu(self, x: Activation) -> Activation:
        """x · sigmoid(1.702 x): saves its input and the sigmoid."""
        if x.requires_grad:
            self.save(x, Activation(x.width, x.positions))
        return Activation(x.width, x.positions, x.requires_grad)

    def attention(self, q: Activation, k: Activation, v: Activation, heads: int) -> Activation:
        """Flash attention (Dao et al. 2022): saves q, k, v, its output and one value per row and head."""
        requires_grad = q.requires_grad or k.requires_grad or v.requires_grad
        out = Activation(q.width, q.positions, requires_grad)
        if requires_grad:
            self.save(q, k, v, out, Activation(heads, q.positions))
        return out

    def add(self, a: Activation, b: Activation) -> Activation:
        """Addition: saves nothing."""
        return Activation(a.width, a.positions, a.requires_grad or b.requires_grad)

    def cat(self, values: Sequence[Activation]) -> Activation:
        """Concatenation along channels, in new memory."""
        width = sum(value.width for value in values)
        return Activation(width, values[0].positions, any(value.requires_grad for value in values))
