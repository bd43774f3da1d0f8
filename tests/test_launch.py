"""launch.py and install.py decide rightly what to install, without installing anything here."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import install
import launch
from lib_lora_train.cli.main import make_parser
from lib_lora_train.formats.kohya.exporter import TARGETS
from tests.paths import ROOT

CHECKS: Any = importlib.import_module("tools.checks")
REQUIREMENTS = ("requirements.txt", "requirements-test.txt")


# --- the command line of launch.py -----------------------------------------------------------------


def test_no_command_opens_the_app() -> None:
    assert launch.read_options([]) == launch.Options("app", ())
    assert launch.read_options(["--port", "7000"]) == launch.Options("app", ("--port", "7000"))


def test_own_options_may_be_anywhere() -> None:
    expected = launch.Options("demo", ("--out", "x"), cpu=True, no_venv=True)
    assert launch.read_options(["demo", "--cpu", "--out", "x", "--no-venv"]) == expected
    assert launch.read_options(["--cpu", "--no-venv", "demo", "--out", "x"]) == expected


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_limited_console_encoding_causes_no_crash(encoding: str, tmp_path: Path) -> None:
    """As on Windows, where what goes into a file or a pipe is in the code page of the country."""
    webui = tmp_path / "modules" / "launch_utils.py"  # makes install.py detect a webui
    webui.parent.mkdir()
    webui.touch()
    code = (
        "import launch, install; launch.main(['--help']); launch.say('── pytest …');"
        "install.compatible_requirements = lambda found: {}; install.main(); install.report_failure(['a'], 'ж')"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"?? pytest" in done.stdout and b"(?)" in done.stdout


def test_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["tran", "x.toml"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


def test_help_needs_no_installation(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(launch, "prepare", lambda options: pytest.fail("help must not install"))
    assert launch.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in launch.COMMANDS if command != "app")


def test_launch_and_the_trainer_have_the_same_commands_and_options() -> None:
    (commands,) = (one for one in make_parser()._actions if isinstance(one, argparse._SubParsersAction))
    assert sorted(launch.COMMANDS) == sorted([*commands.choices, "test", "setup"])
    usage = launch.USAGE.partition("\noptions\n")[0]
    for line in re.findall(r"^  [a-z].*(?:\n {6}.*)*", usage, re.MULTILINE):
        command, *_ = line.split()
        known = commands.choices[command]._option_string_actions if command in commands.choices else ()
        assert [flag for flag in re.findall(r"--[a-z][a-z-]*", line) if flag not in known] == [], line


def test_usage_names_what_import_and_export_convert() -> None:
    lines = {line.split()[0]: line for line in launch.USAGE.splitlines() if line.startswith("  ")}
    assert "kohya" in lines["import"] and "OneTrainer" in lines["import"]
    assert [target for target in TARGETS if target not in lines["export"]] == []


def test_test_arguments_run_only_pytest() -> None:
    assert [name for name, _ in CHECKS.checks(())] == ["ruff check", "ruff format", "mypy", "pytest"]
    assert CHECKS.checks(["-k", "plan"]) == [("pytest", ["pytest", "-k", "plan"])]


def test_failing_linter_fails_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CHECKS, "passes", lambda name, command: name != "mypy")
    assert CHECKS.run_checks(()) == 1
    monkeypatch.setattr(CHECKS, "passes", lambda *rest: True)
    assert CHECKS.run_checks(()) == 0


def test_tests_get_their_arguments_and_no_network_and_the_status_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[list[str], dict[str, str]]] = []

    def call(command: list[str], env: dict[str, str]) -> int:
        calls.append((command, env))
        return 3

    monkeypatch.setattr(subprocess, "call", call)
    assert launch.run_tests(Path("python"), launch.Options("test", ("-k", "plan"), cpu=True)) == 3
    ((command, environment),) = calls
    assert command == ["python", str(ROOT / "tools" / "checks.py"), "-k", "plan"]
    assert environment["HF_HUB_OFFLINE"] == "1" and environment["CUDA_VISIBLE_DEVICES"] == "-1"


# --- requirements ----------------------------------------------------------------------------------


@pytest.mark.parametrize("minor", [10, 11, 12, 13])
@pytest.mark.parametrize("file", REQUIREMENTS)
def test_every_requirement_has_one_pin_per_python_version(file: str, minor: int) -> None:
    names = [line.partition("==")[0] for line in (ROOT / file).read_text().splitlines() if "==" in line]
    assert set(launch.read_pins(ROOT / file, minor)) == set(names)


def test_marker_selects_by_python_version(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text('# why\nnumpy==2.4.6; python_version >= "3.11"\nnumpy==2.2.6; python_version < "3.11"\npeft==1.0\n')
    assert launch.read_pins(file, 10) == {"numpy": "2.2.6", "peft": "1.0"}
    assert launch.read_pins(file, 11) == {"numpy": "2.4.6", "peft": "1.0"}


def test_unpinned_requirement_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("numpy>=2\n")
    with pytest.raises(launch.SetupError, match="numpy>=2"):
        launch.read_pins(file)


# --- PyTorch ---------------------------------------------------------------------------------------

INDEX = launch.TORCH_INDEX
RANGE = f"torch>=2.6,<={launch.TORCH}"
REGISTRY = (f"torch=={launch.TORCH}",)


@pytest.mark.parametrize(
    ("machine", "first"),
    [
        (launch.Machine("Linux", "cpu", offers_cpu_build=True), (f"torch=={launch.TORCH}+cpu",)),
        (launch.Machine("Linux", "cpu", reaches_torch_index=True), (RANGE, "--index-url", f"{INDEX}/cpu")),
        (launch.Machine("Linux", "cpu"), REGISTRY),
        (launch.Machine("Linux", "cu130", reaches_torch_index=True), REGISTRY),
        (launch.Machine("Linux", "cu126", reaches_torch_index=True), (RANGE, "--index-url", f"{INDEX}/cu126")),
        (launch.Machine("Windows", "cpu", reaches_torch_index=True), REGISTRY),
        (launch.Machine("Windows", "cu130", reaches_torch_index=True), (RANGE, "--index-url", f"{INDEX}/cu130")),
        (launch.Machine("Windows", "cu130"), REGISTRY),
        (launch.Machine("Darwin", "cpu"), REGISTRY),
    ],
)
def test_torch_build_fits_the_machine(machine: launch.Machine, first: tuple[str, ...]) -> None:
    sources = launch.torch_sources(machine)
    assert sources[0] == first
    assert sources[-1] == REGISTRY, "the registry is the last resort"


@pytest.mark.parametrize(
    ("cuda", "capability", "build"),
    [
        ((13, 0), 8.9, "cu130"),
        ((13, 1), None, "cu130"),
        ((13, 0), 6.1, "cu126"),  # a GTX 1080 with a new driver
        ((12, 4), 8.9, "cu126"),
        ((11, 8), 7.5, "cu118"),
    ],
)
def test_cuda_build_supports_driver_and_gpu(cuda: tuple[int, int], capability: float | None, build: str) -> None:
    assert launch.cuda_build(cuda, capability) == build


def test_driver_version_and_lowest_compute_capability_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(tool: str, *arguments: str) -> str:
        return "8.9\n6.1\n" if arguments else "| NVIDIA-SMI 580.1   Driver Version: 580.1   CUDA Version: 13.0  |"

    monkeypatch.setattr(launch, "output_of", answer)
    assert launch.find_nvidia() == ((13, 0), 6.1)
    monkeypatch.setattr(launch, "output_of", lambda *command: "")
    assert launch.find_nvidia() == (None, None)


def test_cpu_option_does_not_look_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "find_nvidia", lambda: pytest.fail("--cpu must not look for a card"))
    monkeypatch.setattr(launch, "offers_cpu_build", lambda python: False)
    monkeypatch.setattr(launch, "is_reachable", lambda url: False)
    assert launch.inspect_machine(Path("python"), cpu=True).build == "cpu"


@pytest.mark.parametrize(
    ("version", "usable"),
    [("2.13.0+cpu", True), ("2.6.0", True), ("10.0", True), ("2.5.1+cu121", False), (None, False), ("", False)],
)
def test_torch_version_is_compared_numerically(version: str | None, usable: bool) -> None:
    assert launch.is_new_enough(version) is usable


def test_usable_torch_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "version_in", lambda python, name: "2.9.1+rocm6.4")
    monkeypatch.setattr(launch, "pip_installs", lambda *arguments: pytest.fail("it must be kept"))
    launch.install_torch(Path("python"), cpu=False)


def test_torch_sources_are_tried_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, ...]] = []

    def fail(python: Path, *arguments: str) -> bool:
        tried.append(arguments)
        return False

    machine = launch.Machine("Linux", "cpu", reaches_torch_index=True)
    monkeypatch.setattr(launch, "version_in", lambda python, name: None)
    monkeypatch.setattr(launch, "inspect_machine", lambda python, cpu: machine)
    monkeypatch.setattr(launch, "pip_installs", fail)
    with pytest.raises(launch.SetupError, match="PyTorch could not be installed"):
        launch.install_torch(Path("python"), cpu=True)
    assert tried == list(launch.torch_sources(machine))


def test_unresponsive_url_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts the connection and never responds
        assert not launch.is_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.2)


# --- the environment -------------------------------------------------------------------------------


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Point launch.py at an empty folder with two requirement files; installation steps are only recorded."""
    done: list[str] = []
    for file in REQUIREMENTS:
        (tmp_path / file).write_text("peft==0.21.2\n")
    python = tmp_path / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def make() -> None:
        python.parent.mkdir(parents=True)
        python.touch()
        done.append("venv")

    monkeypatch.setattr(launch, "ROOT", tmp_path)
    monkeypatch.setattr(launch, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(launch, "STAMP", tmp_path / ".venv" / "stamp.json")
    monkeypatch.setattr(launch, "is_complete_venv", lambda files: False)
    monkeypatch.setattr(launch, "has_pip", lambda python: python.exists())
    monkeypatch.setattr(launch, "make_venv", make)
    monkeypatch.setattr(launch, "install_torch", lambda python, cpu: done.append("torch"))
    monkeypatch.setattr(launch, "install_requirements", lambda python, files: done.extend(files))
    return done


def test_second_start_installs_nothing(empty_home: list[str]) -> None:
    python = launch.prepare_venv(["requirements.txt"], cpu=True)
    assert empty_home == ["venv", "torch", "requirements.txt"]
    empty_home.clear()
    assert launch.prepare_venv(["requirements.txt"], cpu=True) == python
    assert empty_home == []


def test_only_changed_requirements_are_reinstalled(empty_home: list[str]) -> None:
    launch.prepare_venv(["requirements.txt"], cpu=True)
    empty_home.clear()
    launch.prepare_venv(REQUIREMENTS, cpu=True)
    assert empty_home == ["torch", "requirements-test.txt"]
    empty_home.clear()
    (launch.ROOT / "requirements.txt").write_text("peft==0.21.3\n")
    launch.prepare_venv(REQUIREMENTS, cpu=True)
    assert empty_home == ["torch", "requirements.txt"]


def test_interrupted_installation_is_repeated(empty_home: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(python: Path, files: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(launch, "install_requirements", interrupt)
        assert launch.main(["setup"]) == 130
    empty_home.clear()
    launch.prepare_venv(["requirements.txt"], cpu=True)
    assert empty_home == ["torch", "requirements.txt"]


def test_environment_without_python_is_recreated(empty_home: list[str]) -> None:
    python = launch.prepare_venv(["requirements.txt"], cpu=True)
    python.unlink()
    python.parent.rmdir()
    empty_home.clear()
    launch.prepare_venv(["requirements.txt"], cpu=True)
    assert empty_home == ["venv", "torch", "requirements.txt"]


def test_no_venv_reports_missing_packages(empty_home: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (launch.ROOT / "requirements.txt").write_text("surely-not-installed==1.0\n")
    assert launch.main(["demo", "--no-venv"]) == 2
    assert "lacks surely-not-installed" in capsys.readouterr().err
    assert empty_home == []


def test_command_runs_in_the_callers_folder(tmp_path: Path) -> None:
    """`train x.toml` means x.toml in the user's current folder, wherever launch.py is."""
    (tmp_path / "x.toml").write_text("rankk = 8\n")
    script = ROOT / "launch.py"
    command = [sys.executable, str(script), "--no-venv", "train", "x.toml", "--dry-run"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 2, answer.stderr
    assert "Did you mean 'rank'?" in answer.stderr


# --- install.py ------------------------------------------------------------------------------------

A1111 = {"torch": "2.1.2+cu121", "transformers": "4.30.2", "accelerate": "0.21.0", "safetensors": "0.4.2"}
REFORGE = {"torch": "2.9.0", "transformers": "4.48.1", "accelerate": "0.21.0", "safetensors": "0.5.2"}
NEO = {"torch": "2.11.0", "transformers": "4.57.6", "accelerate": "1.14.0", "safetensors": "0.8.0"}


@pytest.mark.parametrize(
    ("host", "diffusers", "peft"),
    [
        (A1111, "diffusers>=0.31,<=0.35.2", "peft==0.13.2"),
        (REFORGE, "diffusers>=0.31,<=0.35.2", "peft==0.13.2"),
        (NEO, "diffusers>=0.36,<=0.42.1", "peft>=0.17,<=0.21.2"),
    ],
)
def test_requirements_fit_the_webuis_versions(host: dict[str, str | None], diffusers: str, peft: str) -> None:
    chosen = install.compatible_requirements(host)
    assert (chosen["diffusers"], chosen["peft"]) == (diffusers, peft)


@pytest.fixture
def webui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Run as in a webui with the packages in the returned dictionary."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "launch_utils.py").touch()
    monkeypatch.chdir(tmp_path)
    packages = {**A1111, "regex": "2024.11.6", "charset-normalizer": "3.4.1"}
    monkeypatch.setattr(install, "installed_version", packages.get)
    monkeypatch.setattr(install, "constraints", lambda: [f"{n}=={v}" for n, v in packages.items()])
    return packages


def test_install_does_nothing_when_nothing_is_missing(webui: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    webui.update(diffusers="0.35.2", peft="0.13.2", prodigyopt="1.1.2", tomlkit="0.12.0")
    monkeypatch.setattr(install, "install", lambda requirements: pytest.fail("nothing is missing"))
    install.main()


def test_install_requests_only_missing_packages_and_pins_the_rest(
    webui: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    webui.update(diffusers="0.31.0", tomlkit="0.12.0")
    arguments: list[str] = []

    def run(command: list[str], **rest: Any) -> subprocess.CompletedProcess[str]:
        arguments.extend(command)
        arguments.append(Path(command[-1]).read_text())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    install.main()
    assert "peft==0.13.2" in arguments
    assert "prodigyopt==1.1.2" in arguments
    assert not any(word.startswith(("diffusers", "tomlkit")) for word in arguments[:-1])
    assert arguments[-2].endswith("constraints.txt") and arguments[-3] == "-c"
    assert "torch==2.1.2+cu121" in arguments[-1] and "diffusers==0.31.0" in arguments[-1]


@pytest.mark.parametrize("failure", ["pip says no", "timeout", "no pip"])
def test_failed_installation_does_not_stop_the_webui(
    webui: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: str
) -> None:
    def run(command: list[str], **rest: Any) -> subprocess.CompletedProcess[str]:
        if failure == "timeout":
            raise subprocess.TimeoutExpired(command, 1)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found for peft")

    monkeypatch.setattr(subprocess, "run", run)
    if failure == "no pip":
        monkeypatch.setattr(install, "installer", lambda: None)
    install.main()
    assert "could not be installed" in capsys.readouterr().out


def test_old_package_of_the_webui_is_reported_and_not_changed(
    webui: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    webui.update(diffusers="0.25.0", peft="0.13.2", prodigyopt="1.1.2", tomlkit="0.12.0")
    monkeypatch.setattr(install, "install", lambda requirements: pytest.fail("it must be left alone"))
    install.main()
    assert "diffusers 0.25.0 is older than 0.31" in capsys.readouterr().out


def test_install_does_nothing_outside_a_webui(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "install.py")]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "python launch.py" in answer.stdout
    assert "torch" not in answer.stderr.split()


def test_constraints_are_accepted_by_pip() -> None:
    lines = install.constraints()
    names = [line.partition("==")[0] for line in lines]
    assert len(names) == len(set(names)), "pip refuses two pins of one package"
    assert any(line.startswith("torch==") for line in lines)
    assert all(install._CLEAN_VERSION.fullmatch(line.partition("==")[2]) for line in lines)


def test_damaged_stamp_counts_as_nothing_installed(empty_home: list[str]) -> None:
    launch.prepare_venv(["requirements.txt"], cpu=True)
    launch.STAMP.write_text("{")
    assert launch.read_stamp() == {}
    launch.STAMP.write_text(json.dumps([1]))
    assert launch.read_stamp() == {}
