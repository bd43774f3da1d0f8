"""The adapter's flat parameters as the matrices they are made of, for what treats matrices one by one.

Factored optimisers (Adafactor, CAME) keep moments by row and column and clip by a matrix's size; LoRA+ gives one matrix
of each pair a rate of its own. Each piece is a parameter on the flat one's own storage: nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lib_lora_train.adapters.inject import Adapter
from lib_lora_train.config.optimizer_catalog import KINDS
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.training.master_weights import MasterWeights
from lib_lora_train.training.optimizers import Groups, Optimizer, make_stepper


@dataclass(frozen=True, eq=False)
class MatrixView:
    """One matrix: `ending` is its name in the file (`lora_up.weight`), `start` its place in the flat parameter."""

    flat: nn.Parameter
    ending: str
    start: int
    parameter: nn.Parameter

    def share_gradient(self) -> None:
        """Let the piece's gradient be the flat one's part."""
        grad = self.flat.grad
        size = self.parameter.numel()
        self.parameter.grad = None if grad is None else grad[self.start : self.start + size].view_as(self.parameter)


def pieces_of(adapter: Adapter, groups: Groups, working: MasterWeights) -> dict[str, list[MatrixView]]:
    """Group → its matrices in model order; a parameter that no layer knows parts of is one piece.

    `groups` holds what stands in for the adapter's flat parameters, in groups of any kind.
    """
    homes = {id(parameter): name for name, group in groups.items() for parameter in group}
    found: dict[str, list[MatrixView]] = {name: [] for name in groups}
    for layer in adapter.layers.values():
        buffer = layer.slices.buffer
        flat = working.of(buffer.parameter)
        if id(flat) in homes:
            for short, position in layer.slices.positions.items():
                place = slice(buffer.starts[position], buffer.starts[position] + buffer.sizes[position])
                view = flat.detach()[place].view(buffer.shapes[position])
                piece = nn.Parameter(view, requires_grad=flat.requires_grad)
                found[homes[id(flat)]].append(MatrixView(flat, layer.family.STATE_KEYS[short], place.start, piece))
    for name, group in groups.items():
        known = {id(piece.flat) for piece in found[name]}
        found[name] += [MatrixView(whole, "", 0, whole) for whole in group if id(whole) not in known]
    return found


def split_up(
    pieces: Mapping[str, Sequence[MatrixView]], rates: Mapping[str, float], ratios: Mapping[str, float]
) -> tuple[dict[str, list[nn.Parameter]], dict[str, float]]:
    """LoRA+ (Hayou et al. 2024): the up matrices of a group as one of their own, `unet_up`, at `ratio` times the rate.

    `ratios` by group; a ratio of 0 or 1 leaves the group whole. Returns groups and rates.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    own: dict[str, float] = {}
    for name, members in pieces.items():
        ratio = ratios.get(name, 0.0) or 1.0
        up = [piece.parameter for piece in members if ratio != 1 and piece.ending.startswith("lora_up")]
        groups[name] = [piece.parameter for piece in members if not any(piece.parameter is one for one in up)]
        own[name] = rates[name]
        if up:
            groups[f"{name}_up"], own[f"{name}_up"] = up, rates[name] * ratio
    return groups, own


class OnPieces:
    """A stepper over pieces: before each step they get their parts of the flat gradients, which are forgotten after."""

    def __init__(self, stepper: Optimizer, pieces: Sequence[MatrixView]) -> None:
        self._stepper = stepper
        self._pieces = pieces

    def step(self, factor: float) -> None:
        """See `Optimizer`."""
        for piece in self._pieces:
            if piece.parameter is not piece.flat:
                piece.share_gradient()
        self._stepper.step(factor)
        for piece in self._pieces:
            piece.parameter.grad = piece.flat.grad = None

    def take_over(self) -> None:
        """See `Optimizer`; pieces share the flat parameters' storage."""
        self._stepper.take_over()

    def effective_rates(self) -> dict[str, float]:
        """See `Optimizer`."""
        return self._stepper.effective_rates()

    def set_train(self, on: bool) -> None:
        """See `Optimizer`."""
        self._stepper.set_train(on)

    def state(self) -> dict[str, object]:
        """See `Optimizer`."""
        return self._stepper.state()

    def load_state(self, state: Mapping[str, object]) -> None:
        """See `Optimizer`."""
        self._stepper.load_state(state)


def stepper_for(
    adapter: Adapter, working: MasterWeights, rates: Mapping[str, float], *, config: TrainConfig
) -> Optimizer:
    """The optimiser over the flat parameters, or over their matrices where these are treated one by one.

    What has the learning rate 0 is frozen.
    """
    groups, own_rates = adapter.weighted(rates)
    for name, group in groups.items():
        for parameter in group:
            parameter.requires_grad_(own_rates[name] > 0)
    with working.opened():
        return _stepper(adapter, working, rates, config)


def _stepper(adapter: Adapter, working: MasterWeights, rates: Mapping[str, float], config: TrainConfig) -> Optimizer:
    groups, own_rates = adapter.weighted(rates, working.groups)
    ratios = {
        name: config.loraplus_unet_ratio if name.startswith("unet") else config.loraplus_text_encoder_ratio
        for name in groups
    }
    if not KINDS[config.optimizer].per_matrix and not any(ratio not in (0, 1) for ratio in ratios.values()):
        return make_stepper(groups, own_rates, config=config)
    pieces = pieces_of(adapter, groups, working)
    stepper = make_stepper(*split_up(pieces, own_rates, ratios), config=config)
    return OnPieces(stepper, [piece for name in pieces if own_rates[name] > 0 for piece in pieces[name]])
