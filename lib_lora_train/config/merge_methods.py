"""The ways to merge LoRAs and what each is for; `lora_tools/merge_methods.py` has the mathematics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class MergeMethod:
    """A way to merge: its name on the page, and what it is for, as the start of a sentence without its full stop."""

    title: str
    purpose: str


METHODS: Mapping[str, MergeMethod] = {
    "sum": MergeMethod("sum", "everything of all files, as if they were used together in a prompt"),
    "ties": MergeMethod(
        "TIES", "for files that contradict each other: small values go, and each weight follows the stronger sign"
    ),
    "dare": MergeMethod(
        "DARE", "for files that crowd each other: values are dropped at random, and the rest is made larger"
    ),
    "dare_ties": MergeMethod("DARE and TIES", "drops at random as DARE, then each weight follows the stronger sign"),
    "della": MergeMethod("DELLA", "as DARE and TIES, but small values are dropped more often than large ones"),
}
