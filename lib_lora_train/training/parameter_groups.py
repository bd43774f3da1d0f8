"""The adapter's flat parameters as separate matrices, for optimisers that treat each matrix by itself.

Factored optimisers (Adafactor, CAME) keep moments by row and column and clip by a matrix's size; LoRA+ gives one matrix
of each pair another learning rate. Each view is a parameter on the flat one's storage: nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lib_lora_train.config.optimizer_catalog import OPTIMIZER_CATALOG
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.methods.trained_part import TrainedPart
from lib_lora_train.training.master_weights import MasterWeights
from lib_lora_train.training.optimizers import Groups, Optimizer, make_optimizer


@dataclass(frozen=True, eq=False)
class MatrixView:
    """One matrix: `ending` is its name in the file (`lora_up.weight`), `start` its offset in the flat parameter."""

    flat: nn.Parameter
    ending: str
    start: int
    parameter: nn.Parameter

    def share_gradient(self) -> None:
        """Make the matrix's gradient a view of the flat parameter's."""
        grad = self.flat.grad
        size = self.parameter.numel()
        self.parameter.grad = None if grad is None else grad[self.start : self.start + size].view_as(self.parameter)


def matrix_views(adapter: TrainedPart, groups: Groups, master_weights: MasterWeights) -> dict[str, list[MatrixView]]:
    """Group → its matrices in model order; a parameter that no layer has slices of is one view.

    `groups` holds the master weights of the adapter's flat parameters, grouped in any way.
    """
    group_of = {id(parameter): name for name, group in groups.items() for parameter in group}
    found: dict[str, list[MatrixView]] = {name: [] for name in groups}
    for layer in adapter.layers.values():
        buffer = layer.slices.buffer
        flat = master_weights.master_of(buffer.parameter)
        if id(flat) in group_of:
            for short, position in layer.slices.positions.items():
                span = slice(buffer.starts[position], buffer.starts[position] + buffer.sizes[position])
                view = flat.detach()[span].view(buffer.shapes[position])
                matrix = nn.Parameter(view, requires_grad=flat.requires_grad)
                found[group_of[id(flat)]].append(MatrixView(flat, layer.family.STATE_KEYS[short], span.start, matrix))
    for name, group in groups.items():
        known = {id(view.flat) for view in found[name]}
        found[name] += [MatrixView(whole, "", 0, whole) for whole in group if id(whole) not in known]
    return found


def split_loraplus_groups(
    views: Mapping[str, Sequence[MatrixView]], rates: Mapping[str, float], ratios: Mapping[str, float]
) -> tuple[dict[str, list[nn.Parameter]], dict[str, float]]:
    """Groups and rates with LoRA+ (Hayou et al. 2024): a group's up matrices become `unet_up`, at `ratio` × its rate.

    `ratios` by group; a ratio of 0 or 1 leaves the group whole.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    own: dict[str, float] = {}
    for name, members in views.items():
        ratio = ratios.get(name, 0.0) or 1.0
        up = [view.parameter for view in members if ratio != 1 and view.ending.startswith("lora_up")]
        groups[name] = [view.parameter for view in members if not any(view.parameter is one for one in up)]
        own[name] = rates[name]
        if up:
            groups[f"{name}_up"], own[f"{name}_up"] = up, rates[name] * ratio
    return groups, own


class MatrixOptimizer:
    """An optimiser over matrix views: before each step they get their parts of the flat gradients, freed after it."""

    def __init__(self, optimizer: Optimizer, views: Sequence[MatrixView]) -> None:
        self._optimizer = optimizer
        self._views = views

    def step(self, factor: float) -> None:
        for view in self._views:
            if view.parameter is not view.flat:
                view.share_gradient()
        self._optimizer.step(factor)
        for view in self._views:
            view.parameter.grad = view.flat.grad = None

    def reload_parameters(self) -> None:
        """The views share the flat parameters' storage, so only the inner optimiser reloads."""
        self._optimizer.reload_parameters()

    def effective_rates(self) -> dict[str, float]:
        return self._optimizer.effective_rates()

    def set_train(self, on: bool) -> None:
        self._optimizer.set_train(on)

    def state(self) -> dict[str, object]:
        return self._optimizer.state()

    def load_state(self, state: Mapping[str, object]) -> None:
        self._optimizer.load_state(state)


def optimizer_for_adapter(
    adapter: TrainedPart, master_weights: MasterWeights, rates: Mapping[str, float], *, config: TrainConfig
) -> Optimizer:
    """The optimiser over the flat parameters, or over their matrices where it treats each matrix by itself.

    Parameters with a learning rate of 0 are frozen.
    """
    groups, own_rates = adapter.parameter_groups(rates)
    for name, group in groups.items():
        for parameter in group:
            parameter.requires_grad_(own_rates[name] > 0)
    with master_weights.loaded():
        return _optimizer(adapter, master_weights, rates, config)


def _optimizer(
    adapter: TrainedPart, master_weights: MasterWeights, rates: Mapping[str, float], config: TrainConfig
) -> Optimizer:
    groups, own_rates = adapter.parameter_groups(rates, master_weights.groups)
    ratios = {
        name: config.loraplus_unet_ratio if name.startswith("unet") else config.loraplus_text_encoder_ratio
        for name in groups
    }
    if not OPTIMIZER_CATALOG[config.optimizer].per_matrix and not any(ratio not in (0, 1) for ratio in ratios.values()):
        return make_optimizer(groups, own_rates, config=config)
    views = matrix_views(adapter, groups, master_weights)
    optimizer = make_optimizer(*split_loraplus_groups(views, own_rates, ratios), config=config)
    return MatrixOptimizer(optimizer, [view for group in views.values() for view in group])
