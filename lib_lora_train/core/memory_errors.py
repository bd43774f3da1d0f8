"""Which errors mean that memory ran out: each device and library reports it in a different way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lib_lora_train.core.errors import MemoryFullError, OutputError

# CUDA and ROCm, Apple's MPS, PyTorch's allocator on Linux and on Windows, and cuBLAS, which allocates by itself.
_MESSAGES = re.compile(
    r"out of memory|DefaultCPUAllocator|not enough memory: you tried to allocate|CUBLAS_STATUS_ALLOC_FAILED"
    r"|cannot allocate memory|std::bad_alloc",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that the memory of the GPU or of the computer is full."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
        return True
    return isinstance(error, (RuntimeError, OSError)) and bool(_MESSAGES.search(str(error)))


def memory_name(device: str) -> str:
    """What a message calls the memory of a kind of device ("cuda", "cpu", "mps")."""
    return "the computer's memory" if device in ("cpu", "mps") else "the graphics card's memory"


def memory_full_message(device: str) -> str:
    """That memory ran out, and what to do."""
    name = memory_name(device)
    others = "that use the card " if name == "the graphics card's memory" else ""
    return (
        f"{name[0].upper()}{name[1:]} is full. Close other programs {others}or lower the resolution, then start or "
        "resume the run."
    )


def memory_full(device: str) -> MemoryFullError:
    """The error to raise when the memory of a kind of device ran out."""
    return MemoryFullError(memory_full_message(device))


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Inside, running out of memory is an OutputError: the file could not be saved, and saving it again may work."""
    try:
        yield
    except (RuntimeError, OSError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        text = f"{path.name} could not be saved because the memory is full. Close other programs"
        raise OutputError(f"{text}, or images and tabs of the webui that need memory.") from error
