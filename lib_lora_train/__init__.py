"""Plan, train, load and merge LoRAs from Python.

    from lib_lora_train import load, merge, plan, train

The functions are written in `api/public.py` and loaded when they are first used, so that `import lib_lora_train`
loads nothing else: neither PyTorch nor another module of this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lib_lora_train.api.public import load, merge, plan, train

__all__ = ["load", "merge", "plan", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lib_lora_train.api import public

    return getattr(public, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
