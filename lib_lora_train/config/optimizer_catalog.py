"""Facts about the available optimisers: class, package, arguments and usual learning rates.

They are used to validate settings without importing PyTorch; `training/optimizers.py` creates the optimisers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CUSTOM = "Custom"


@dataclass(frozen=True)
class OptimizerInfo:
    """One optimiser.

    `origin` is `module:Class`, `package` the pip package if it is not a requirement, and `arguments` the names allowed
    in `optimizer_args` (empty: only the class knows). `estimates_lr`: it estimates a factor d and multiplies the given
    learning rate by it. `per_matrix`: it processes each matrix separately (factored moments, clipping by a matrix's
    size). `schedule_free`: it averages weights instead of lowering the learning rate, and the averaged ones are saved.
    Guides start with `usual_lr`; above `high_lr` images look overcooked.
    """

    origin: str
    arguments: tuple[str, ...] = ()
    package: str = ""
    estimates_lr: bool = False
    per_matrix: bool = False
    schedule_free: bool = False
    usual_lr: float = 1e-4
    high_lr: float = 5e-4

    @property
    def may_average_weights(self) -> bool:
        """Whether the weights to save may differ from those in training; for custom classes this is not known."""
        return self.schedule_free or not self.origin


_DADAPT_ADAM = ("betas", "eps", "weight_decay", "decouple", "use_bias_correction", "d0", "growth_rate")

OPTIMIZER_CATALOG: Mapping[str, OptimizerInfo] = {
    "AdamW": OptimizerInfo("torch.optim:AdamW", ("betas", "eps", "weight_decay", "amsgrad")),
    "AdamW8bit": OptimizerInfo(
        "bitsandbytes.optim:AdamW8bit",
        ("betas", "eps", "weight_decay", "min_8bit_size"),
        "bitsandbytes",
    ),
    "Prodigy": OptimizerInfo(
        "prodigyopt:Prodigy",
        (
            *("betas", "beta3", "eps", "weight_decay", "decouple", "use_bias_correction", "safeguard_warmup"),
            *("d0", "d_coef", "growth_rate", "slice_p"),
        ),
        "prodigyopt",
        estimates_lr=True,
        usual_lr=1.0,
    ),
    "Adafactor": OptimizerInfo(
        "lib_lora_train.models.library_compat:Adafactor",
        (
            *("eps", "clip_threshold", "decay_rate", "beta1", "weight_decay"),
            *("scale_parameter", "relative_step", "warmup_init"),
        ),
        per_matrix=True,
        high_lr=5e-3,
    ),
    "Lion": OptimizerInfo(
        "lib_lora_train.training.lion:Lion", ("betas", "weight_decay"), usual_lr=3e-5, high_lr=1.5e-4
    ),
    "SGDNesterov": OptimizerInfo(
        "torch.optim:SGD", ("momentum", "dampening", "weight_decay"), usual_lr=1e-2, high_lr=10.0
    ),
    "DAdaptAdam": OptimizerInfo("dadaptation:DAdaptAdam", _DADAPT_ADAM, "dadaptation", estimates_lr=True, usual_lr=1.0),
    "DAdaptAdan": OptimizerInfo(
        "dadaptation:DAdaptAdan",
        ("betas", "eps", "weight_decay", "no_prox", "d0", "growth_rate"),
        "dadaptation",
        estimates_lr=True,
        usual_lr=1.0,
    ),
    "DAdaptLion": OptimizerInfo(
        "dadaptation:DAdaptLion", ("betas", "weight_decay", "d0"), "dadaptation", estimates_lr=True, usual_lr=1.0
    ),
    "DAdaptSGD": OptimizerInfo(
        "dadaptation:DAdaptSGD",
        ("momentum", "weight_decay", "d0", "growth_rate"),
        "dadaptation",
        estimates_lr=True,
        usual_lr=1.0,
    ),
    "AdamWScheduleFree": OptimizerInfo(
        "schedulefree:AdamWScheduleFree",
        ("betas", "eps", "weight_decay", "warmup_steps", "r", "weight_lr_power"),
        "schedulefree",
        schedule_free=True,
        usual_lr=3e-4,
        high_lr=2.5e-3,
    ),
    "CAME": OptimizerInfo(
        "came_pytorch:CAME",
        ("betas", "eps", "clip_threshold", "weight_decay"),
        "came-pytorch",
        per_matrix=True,
        high_lr=1e-3,
    ),
    CUSTOM: OptimizerInfo("", per_matrix=True),
}
"""By the value of the setting `optimizer`."""

ARGUMENT_LENGTHS: Mapping[str, Mapping[str, int]] = {
    "CAME": {"betas": 3, "eps": 2},
    "DAdaptAdan": {"betas": 3},
    "Adafactor": {"eps": 2},
}
"""Number of values of an argument, if not two for `betas` and one for all others."""


def uses_relative_step(optimizer: str, lr_schedule: str) -> bool:
    """Whether Adafactor chooses its step size itself and ignores the learning rate."""
    return optimizer == "Adafactor" and lr_schedule == "adafactor"
