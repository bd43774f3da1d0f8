"""What a guest puts back: the webui's options, random numbers and prompt caches that our work would change.

All of these must be called under the queue lock, so no generation runs meanwhile. Users can still save the webui's
settings at any time; what they choose is kept.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

_UNSET = object()


# --- random numbers --------------------------------------------------------------------------------


@contextmanager
def restored_random_state() -> Iterator[None]:
    """Inside, global random number generators may be seeded and used; afterwards they are as before.

    These are Python's, NumPy's, PyTorch's on every device in use, and the webui's own for the source *NV*.
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    noise = sys.modules.get("modules.rng")
    philox = getattr(noise, "nv_rng", _UNSET)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if gpu:
            torch.cuda.set_rng_state_all(gpu)
        _put_back(noise, "nv_rng", philox)


def _put_back(owner: Any, name: str, value: Any) -> None:
    """Set the attribute to `value`, or remove it if there was none."""
    if value is not _UNSET:
        setattr(owner, name, value)
    elif owner is not None and hasattr(owner, name):
        delattr(owner, name)


# --- options ---------------------------------------------------------------------------------------


@contextmanager
def temporary_options(shared: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Inside, the webui's options have these values; afterwards each is as before, including "never set".

    The webui's own `override_settings` restores only the options in its saved settings: in a webui whose settings were
    never saved, the values would stay. An option that the user changes meanwhile keeps the user's value, and a
    settings file that is saved meanwhile is saved again without ours.
    """
    data = shared.opts.data
    changed = {name: value for name, value in values.items() if getattr(shared.opts, name, _UNSET) != value}
    before = {name: data.get(name, _UNSET) for name in changed}
    saved = _modified(shared)
    data.update(changed)
    try:
        yield
    finally:
        for name, value in changed.items():
            if data.get(name, _UNSET) != value:
                continue
            if before[name] is _UNSET:
                del data[name]
            else:
                data[name] = before[name]
        if changed and _modified(shared) != saved:
            with contextlib.suppress(OSError):
                shared.opts.save(shared.config_filename)


def _modified(shared: Any) -> int:
    """When the settings file was saved last, in ns; 0 if never."""
    name = getattr(shared, "config_filename", None)
    try:
        return Path(name).stat().st_mtime_ns if name else 0
    except OSError:
        return 0


# --- the user's last prompt ------------------------------------------------------------------------


@contextmanager
def without_prompt_history(shared: Any) -> Iterator[None]:
    """Inside, generations do not replace the user's last prompt, which the webui's ↙ button brings back."""
    name = "no_prompt_history"
    before = getattr(shared.cmd_opts, name, _UNSET)
    setattr(shared.cmd_opts, name, True)
    try:
        yield
    finally:
        _put_back(shared.cmd_opts, name, before)


def with_own_prompt_cache(job: Any) -> Any:
    """The job, with a cache of encoded prompts that is not shared with the user's images."""
    for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
        if hasattr(job, name):
            setattr(job, name, [None, None])
    return job
