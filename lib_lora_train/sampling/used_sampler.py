"""The sampler that really draws, which is not always the one chosen. Whatever names a sampler takes it from here.

Does not import PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass

_SAME_ON_A_FLOW = {"DDIM": "Euler"}
"""On a rectified flow's straight line, a step of DDIM is one of Euler."""


@dataclass(frozen=True)
class UsedSampler:
    """A sampler by its name in the webuis.

    `is_flow`: it draws a rectified flow, on evenly spaced σ, shifted by `flow_shift` (None: not known).
    """

    name: str
    is_flow: bool = False
    flow_shift: float | None = None


def used_sampler(chosen: str, prediction_type: str, flow_shift: float | None = None) -> UsedSampler:
    """What draws with the sampler `chosen` on a model that predicts this."""
    if prediction_type != "rectified_flow":
        return UsedSampler(chosen)
    return UsedSampler(_SAME_ON_A_FLOW.get(chosen, chosen), is_flow=True, flow_shift=flow_shift)
