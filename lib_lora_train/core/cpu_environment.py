"""Environment variables that decide how PyTorch computes on a CPU; it reads them once, when it is imported."""

from __future__ import annotations

from collections.abc import MutableMapping

CPU_ENVIRONMENT = {
    # Threads that spin while they wait take the cores from whatever else computes: beside two busy processes on two
    # cores, training is several times slower (benchmarks/shared_cpu.py).
    "OMP_WAIT_POLICY": "PASSIVE",
    # Some virtual machines advertise AMX but trap its instructions; every CPU with AMX also has AVX-512.
    "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
}


def set_cpu_environment(environment: MutableMapping[str, str]) -> None:
    """Set what the user has not set; has an effect only before PyTorch is imported."""
    for name, value in CPU_ENVIRONMENT.items():
        environment.setdefault(name, value)
