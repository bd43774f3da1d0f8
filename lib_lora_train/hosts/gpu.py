"""The graphics card a host computes on."""

from __future__ import annotations

import torch

from lib_lora_train.hosts.host import Gpu


def find_gpu(device: torch.device) -> Gpu | None:
    """The card and its memory now; None if the device is not CUDA or does not respond (memory full, driver error).

    If CUDA has not been used yet, this initialises it.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    try:
        index = torch.cuda.current_device() if device.index is None else device.index  # PyTorch before 2.4 requires one
        free, total = torch.cuda.mem_get_info(index)
        cached = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
        return Gpu(torch.cuda.get_device_name(index), total, free + cached)
    except RuntimeError:
        return None


def device_name(device: torch.device, gpu: Gpu | None) -> str:
    """The card's name, or the device type. Step times are comparable only between runs with the same name."""
    return gpu.name if gpu else device.type
