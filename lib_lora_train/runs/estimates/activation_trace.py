"""What autograd keeps of a forward pass, counted on sizes alone; no PyTorch is needed for that.

`Tape` plays autograd: every operation is told the sizes of what goes in and answers with the size of what comes out,
and notes what its backward pass will ask for. `anatomy` runs the UNet on it. What each operation keeps stands in
PyTorch's derivatives.yaml; for an adapted layer it is what `adapters.lora` and `adapters.rebuilt` save.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Keeps:
    """What an adapted layer keeps for its backward pass: its input or not, and so many more numbers per position."""

    is_input: bool = True
    more: int = 0


Adapted = Callable[[str], "Keeps | None"]
"""Layer name → what it keeps, None for a frozen layer."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of one sample: `width` numbers at each of `places` positions.

    `learns`: a gradient will flow through it. `home`: the tensor whose memory it lies in, if that is not its own.
    """

    width: int
    places: int
    learns: bool = False
    home: Value | None = None

    @property
    def size(self) -> int:
        """Numbers in it."""
        return self.width * self.places


@dataclass(frozen=True)
class Layer:
    """A layer with a weight: Linear and convolution (outputs, inputs[, kernel, kernel]), norms (outputs,)."""

    name: str
    outputs: int
    inputs: int = 0
    kernel: int = 0
    has_bias: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's."""
        if not self.inputs:
            return (self.outputs,)
        return (self.outputs, self.inputs, self.kernel, self.kernel) if self.kernel else (self.outputs, self.inputs)


@dataclass
class Tape:
    """The pass so far: its layers, and what is kept of it."""

    adapted: Adapted
    checkpointing: bool = False
    layers: list[Layer] = field(default_factory=list)
    _most_again: int = 0
    _kept: dict[int, Value] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Numbers kept for the backward pass, per sample."""
        return sum(value.size for value in self._kept.values())

    @property
    def most(self) -> int:
        """Numbers there at the worst moment of the backward pass, per sample, without its own temporary ones.

        When a checkpoint is computed again, what was kept after it is gone already.
        """
        return max(self.kept, self._most_again)

    def keep(self, *values: Value) -> None:
        """Note that the backward pass will ask for these; what shares memory counts once."""
        for value in values:
            home = value.home or value
            self._kept[id(home)] = home

    @contextmanager
    def again(self, *inputs: Value) -> Iterator[None]:
        """Inside is a checkpoint: only its inputs are kept, if it keeps anything, and the rest is computed again."""
        if not self.checkpointing:
            yield
            return
        outer, self._kept = self._kept, {}
        yield
        inner, self._kept = self._kept, outer
        if inner:
            self.keep(*inputs)
            fresh = sum(value.size for key, value in inner.items() if key not in self._kept)
            self._most_again = max(self._most_again, self.kept + fresh)

    # --- operations ----------------------------------------------------------------------------
    def norm(self, name: str, x: Value) -> Value:
        """GroupNorm or LayerNorm: keeps its input (and two numbers per group or row, which are not counted)."""
        self.layers.append(Layer(name, x.width))
        learns = x.learns or self.adapted(name) is not None
        if learns:
            self.keep(x)
        return Value(x.width, x.places, learns)

    def silu(self, x: Value) -> Value:
        """SiLU or GELU: keeps its input."""
        if x.learns:
            self.keep(x)
        return Value(x.width, x.places, x.learns)

    def weighted(self, layer: Layer, x: Value, places: int = 0) -> Value:
        """Linear or convolution; adapted it keeps what the adapter needs.

        A frozen Linear keeps nothing; a frozen convolution keeps its input though nobody asks for it: its backward
        pass is one function for all three gradients.
        """
        self.layers.append(layer)
        keeps = self.adapted(layer.name)
        places = places or x.places
        if (keeps and keeps.is_input) or (layer.kernel and x.learns):
            self.keep(x)
        if keeps and keeps.more:
            self.keep(Value(keeps.more, places))
        return Value(layer.outputs, places, x.learns or keeps is not None)

    def linear(self, name: str, x: Value, outputs: int, *, has_bias: bool = True) -> Value:
        """`weighted` for a Linear layer."""
        return self.weighted(Layer(name, outputs, x.width, has_bias=has_bias), x)

    def conv(self, name: str, x: Value, outputs: int, *, kernel: int = 3, places: int = 0) -> Value:
        """`weighted` for a convolution; `places` where it changes the number of positions."""
        return self.weighted(Layer(name, outputs, x.width, kernel), x, places)

    def gated(self, x: Value) -> Value:
        """GEGLU (Shazeer 2020): half of `x` times the GELU of its other half; keeps `x` and that GELU."""
        half = x.width // 2
        if x.learns:
            self.keep(x, Value(half, x.places))
        return Value(half, x.places, x.learns)

    def quick_gelu(self, x: Value) -> Value:
        """x · sigmoid(1.702 x): keeps its input and the sigmoid."""
        if x.learns:
            self.keep(x, Value(x.width, x.places))
        return Value(x.width, x.places, x.learns)

    def attention(self, q: Value, k: Value, v: Value, heads: int) -> Value:
        """Flash attention (Dao et al. 2022): keeps q, k, v, its output and one number per row and head."""
        learns = q.learns or k.learns or v.learns
        out = Value(q.width, q.places, learns)
        if learns:
            self.keep(q, k, v, out, Value(heads, q.places))
        return out

    def add(self, a: Value, b: Value) -> Value:
        """Keeps nothing."""
        return Value(a.width, a.places, a.learns or b.learns)

    def cat(self, values: Sequence[Value]) -> Value:
        """Channels of all, one after the other, in new memory."""
        width = sum(value.width for value in values)
        return Value(width, values[0].places, any(value.learns for value in values))
