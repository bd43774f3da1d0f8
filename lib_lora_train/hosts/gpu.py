"""The graphics card that a host computes on."""

from __future__ import annotations

import torch

from lib_lora_train.hosts.host import Card


def card_of(device: torch.device) -> Card | None:
    """The card's memory now; None for what is no CUDA device, or a card that does not answer (full, or in trouble).

    Asking is the first use of a card that was not used.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    try:
        index = torch.cuda.current_device() if device.index is None else device.index  # PyTorch before 2.4 asks for one
        free, total = torch.cuda.mem_get_info(index)
        held = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
        return Card(torch.cuda.get_device_name(index), total, free + held)
    except RuntimeError:
        return None


def device_name(device: torch.device, card: Card | None) -> str:
    """The card's name, or the kind of device: what speeds of past runs are comparable by."""
    return card.name if card else device.type
