"""Whoever starts us, PyTorch's idle threads sleep."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lib_lora_train.core.cpu_environment import CPU_ENVIRONMENT, set_cpu_environment
from tests.paths import ROOT

_COMMAND = """
import os, sys
from lib_lora_train.cli.main import main
try:
    main(["{command}", "--help"])
except SystemExit:
    pass
assert "torch" not in sys.modules
print(os.environ["OMP_WAIT_POLICY"])
"""


def test_what_the_user_has_set_stays() -> None:
    environment = {"OMP_WAIT_POLICY": "ACTIVE"}
    set_cpu_environment(environment)
    assert environment == {**CPU_ENVIRONMENT, "OMP_WAIT_POLICY": "ACTIVE"}


@pytest.mark.parametrize("command", ["train", "resume", "demo", "app", "merge"])
def test_every_command_sets_it_before_torch_is_imported(command: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in CPU_ENVIRONMENT}
    code = _COMMAND.format(command=command)
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "PASSIVE"
