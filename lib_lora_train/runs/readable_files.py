"""The adapter of a run in a form that the webui reads, when `files_for_webui` is on and it misreads the trained one."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping

from lib_lora_train.adapters.files.conversion import Converted, network_metadata
from lib_lora_train.adapters.readable import layers_to_rewrite, rewrite_adapter
from lib_lora_train.config.family_support import FORMS
from lib_lora_train.core.errors import MemoryFullError, ModelUnavailableError
from lib_lora_train.core.events import Event, Noted
from lib_lora_train.core.wording import join_names
from lib_lora_train.runs.checks.form_check import who_reads
from lib_lora_train.runs.run_context import RunContext
from lib_lora_train.training.lease import YieldLease, run_leased_cooperatively

_SHOWN_ERROR = 1e-4
_TURN_SECONDS = 0.5


def readable_adapter(run: RunContext, name: str) -> Generator[Event, None, Converted | None]:
    """The adapter as the webui reads it; None if it reads the trained form.

    None, with a warning, if it cannot be made now: a stopped run does not wait for its model.
    """
    if not rewritten_forms(run):
        return None
    try:
        return (yield from run_leased_cooperatively(run.host, run.model, run.control, lambda _, go: _rewrite(run, go)))
    except (ModelUnavailableError, MemoryFullError) as reason:
        advice = "It is saved as it was trained. Convert it in Results."
        yield Noted("warning", name, f"A form that {_readers(run)} could not be made: {reason} {advice}")
        return None


def rewritten_forms(run: RunContext) -> tuple[str, ...]:
    """The forms in which layers are rewritten; () if none is, or `files_for_webui` is off."""
    if not run.config.files_for_webui:
        return ()
    return tuple(sorted(set(layers_to_rewrite(run.adapter.layers, run.host.name).values())))


def readable_metadata(run: RunContext, metadata: Mapping[str, str]) -> dict[str, str]:
    """The run's metadata with kohya's entries for full matrices, if the file consists of them."""
    return {**metadata, **(network_metadata("diff") if "full" in rewritten_forms(run) else {})}


def describe_rewriting(run: RunContext, converted: Converted) -> str:
    """In what form the file was written, and what it lost."""
    forms = join_names([FORMS[form] for form in rewritten_forms(run)])
    error = f"{converted.error:.2%}" if converted.error >= _SHOWN_ERROR else "less than 0.01%"
    lost = f" Left out: {', '.join(converted.left_out)}." if converted.left_out else ""
    return f"Saved as {forms}, which {_readers(run)}. Its update differs from the trained one by {error}.{lost}"


def _readers(run: RunContext) -> str:
    return who_reads(run.host.run_target(run.config).webui)


def _rewrite(run: RunContext, yield_lease: YieldLease) -> Converted:
    """The whole adapter rewritten; whoever waits for the model goes first after `_TURN_SECONDS` of work.

    A generation after each layer would make a file of hundreds of layers wait for hundreds of images.
    """
    began = time.monotonic()

    def after_layer() -> None:
        nonlocal began
        if time.monotonic() - began >= _TURN_SECONDS:
            yield_lease()
            began = time.monotonic()

    with run.eval_weights():
        return rewrite_adapter(run.adapter.layers, run.host.name, run.config.save_precision, after_layer=after_layer)
