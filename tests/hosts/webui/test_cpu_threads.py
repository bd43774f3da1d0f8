"""Inside a webui a turn on the CPU leaves busy cores to the programs that use them."""

from __future__ import annotations

import pytest
import torch

from lib_lora_train.hosts.webui.cpu_threads import ThreadLimit, limited_threads, make_thread_limit, read_cpu_seconds

CPU = torch.device("cpu")


class Machine:
    """Its clock and its CPU times; `others` is the number of cores that other processes keep busy."""

    def __init__(self) -> None:
        self.now = self.machine = self.own = 0.0

    def run(self, seconds: float, *, own: float, others: float) -> None:
        self.now += seconds
        self.own += own * seconds
        self.machine += (own + others) * seconds

    def limit(self, cores: int) -> ThreadLimit:
        return ThreadLimit(cores, clock=lambda: self.now, read=lambda: (self.machine, self.own))


@pytest.mark.parametrize(
    ("own", "others", "threads"), [(8, 0, 8), (5, 3, 5), (6, 1.6, 6), (1, 8, 1), (0.5, 12, 1), (8, -0.2, 8)]
)
def test_cores_that_others_keep_busy_are_left_to_them(own: float, others: float, threads: int) -> None:
    machine = Machine()
    limit = machine.limit(8)
    machine.run(3, own=own, others=others)
    assert limit.threads() == threads


def test_the_cores_come_back_when_the_others_have_finished() -> None:
    machine = Machine()
    limit = machine.limit(4)
    machine.run(3, own=2, others=2)
    assert limit.threads() == 2
    machine.run(1, own=2, others=0)
    assert limit.threads() == 2, "measured every two seconds, not at every step"
    machine.run(3, own=2, others=0)
    assert limit.threads() == 4


def test_pytorch_has_the_webuis_number_of_threads_again_afterwards() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        machine = Machine()
        limit = machine.limit(4)
        machine.run(3, own=1, others=3)
        with pytest.raises(RuntimeError, match="a step failed"), limited_threads(limit, CPU):
            assert torch.get_num_threads() == 1
            raise RuntimeError("a step failed")
        assert torch.get_num_threads() == 4
        for unlimited in (limited_threads(None, CPU), limited_threads(limit, torch.device("cuda"))):
            with unlimited:
                assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_threads_that_sleep_while_they_wait_need_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert make_thread_limit() is None
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert make_thread_limit() is not None


def test_the_machine_has_computed_at_least_as_much_as_this_process() -> None:
    machine, own = read_cpu_seconds()
    assert machine >= own > 0
