"""What remains of a run that failed unexpectedly: the traceback in its folder, and one sentence."""

from __future__ import annotations

import contextlib
import traceback

from lib_lora_train.core.memory_errors import is_out_of_memory, memory_full_message
from lib_lora_train.runs.records.folder import RunFolder


def describe_crash(error: Exception, folder: RunFolder) -> str:
    """One sentence about an unexpected error; its traceback is written to the run's folder if that is possible."""
    written = write_traceback(error, folder)
    if is_out_of_memory(error):
        return memory_full_message("cuda" if "cuda" in str(error).lower() else "cpu")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}. Check the disk and the folder, then resume the run."
    reason = f"{type(error).__name__}: {error}."
    return f"{reason} Details: {folder.crash_report}" if written else f"{reason} Details are in the console."


def write_traceback(error: Exception, folder: RunFolder) -> bool:
    """Write the error's traceback to the run's folder; False if that is impossible, as on a full disk."""
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):
        folder.crash_report.write_text(text, encoding="utf-8", errors="backslashreplace")
        return True
    return False
