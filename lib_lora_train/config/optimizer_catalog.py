"""The optimisers that can be chosen: where each comes from, what it takes, and how it wants to be treated.

Facts only, so that judging settings needs no PyTorch; `train.optim` makes the optimisers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CUSTOM = "Custom"


@dataclass(frozen=True)
class OptimizerKind:
    """One optimiser.

    `origin` is `module:Class`; `package` what pip installs where it is not a requirement; `arguments` what
    `optimizer_args` may hold, empty where only the class knows. `finds_rate`: it estimates the learning rate itself,
    and multiplies the given one by its estimate d. `per_matrix`: it treats each matrix by itself (factored moments,
    clipping by a matrix's size). `schedule_free`: it averages instead of a falling rate, and has weights of its own for
    use. `usual_rate` is where the guides start.
    """

    origin: str
    arguments: tuple[str, ...] = ()
    package: str = ""
    finds_rate: bool = False
    per_matrix: bool = False
    schedule_free: bool = False
    usual_rate: float = 1e-4
    high_rate: float = 5e-4

    @property
    def has_own_weights(self) -> bool:
        """Whether the weights for use may be others than those in training; only the class itself knows for sure."""
        return self.schedule_free or not self.origin


_DADAPT_ADAM = ("betas", "eps", "weight_decay", "decouple", "use_bias_correction", "d0", "growth_rate")

KINDS: Mapping[str, OptimizerKind] = {
    "AdamW": OptimizerKind("torch.optim:AdamW", ("betas", "eps", "weight_decay", "amsgrad")),
    "AdamW8bit": OptimizerKind(
        "bitsandbytes.optim:AdamW8bit",
        ("betas", "eps", "weight_decay", "min_8bit_size"),
        "bitsandbytes",
    ),
    "Prodigy": OptimizerKind(
        "prodigyopt:Prodigy",
        (
            *("betas", "beta3", "eps", "weight_decay", "decouple", "use_bias_correction", "safeguard_warmup"),
            *("d0", "d_coef", "growth_rate", "slice_p"),
        ),
        "prodigyopt",
        finds_rate=True,
        usual_rate=1.0,
    ),
    "Adafactor": OptimizerKind(
        "lib_lora_train.models.library_compat:Adafactor",
        (
            *("eps", "clip_threshold", "decay_rate", "beta1", "weight_decay"),
            *("scale_parameter", "relative_step", "warmup_init"),
        ),
        per_matrix=True,
        high_rate=5e-3,
    ),
    "Lion": OptimizerKind(
        "lib_lora_train.training.lion:Lion", ("betas", "weight_decay"), usual_rate=3e-5, high_rate=1.5e-4
    ),
    "SGDNesterov": OptimizerKind(
        "torch.optim:SGD", ("momentum", "dampening", "weight_decay"), usual_rate=1e-2, high_rate=10.0
    ),
    "DAdaptAdam": OptimizerKind("dadaptation:DAdaptAdam", _DADAPT_ADAM, "dadaptation", finds_rate=True, usual_rate=1.0),
    "DAdaptAdan": OptimizerKind(
        "dadaptation:DAdaptAdan",
        ("betas", "eps", "weight_decay", "no_prox", "d0", "growth_rate"),
        "dadaptation",
        finds_rate=True,
        usual_rate=1.0,
    ),
    "DAdaptLion": OptimizerKind(
        "dadaptation:DAdaptLion", ("betas", "weight_decay", "d0"), "dadaptation", finds_rate=True, usual_rate=1.0
    ),
    "DAdaptSGD": OptimizerKind(
        "dadaptation:DAdaptSGD",
        ("momentum", "weight_decay", "d0", "growth_rate"),
        "dadaptation",
        finds_rate=True,
        usual_rate=1.0,
    ),
    "AdamWScheduleFree": OptimizerKind(
        "schedulefree:AdamWScheduleFree",
        ("betas", "eps", "weight_decay", "warmup_steps", "r", "weight_lr_power"),
        "schedulefree",
        schedule_free=True,
        usual_rate=3e-4,
        high_rate=2.5e-3,
    ),
    "CAME": OptimizerKind(
        "came_pytorch:CAME",
        ("betas", "eps", "clip_threshold", "weight_decay"),
        "came-pytorch",
        per_matrix=True,
        high_rate=1e-3,
    ),
    CUSTOM: OptimizerKind("", per_matrix=True),
}
"""By the name that `optimizer` takes."""

LENGTHS: Mapping[str, Mapping[str, int]] = {
    "CAME": {"betas": 3, "eps": 2},
    "DAdaptAdan": {"betas": 3},
    "Adafactor": {"eps": 2},
}
"""How many numbers an argument takes, where that is not two for `betas` and one for all others."""


def takes_own_schedule(optimizer: str, lr_schedule: str) -> bool:
    """Whether Adafactor chooses its steps itself, whatever learning rate is given."""
    return optimizer == "Adafactor" and lr_schedule == "adafactor"
