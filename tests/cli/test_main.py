"""The command line: every setting is a flag, errors are one clear message, progress is shown."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora_train.cli import main as cli
from lib_lora_train.cli import settings as cli_settings
from lib_lora_train.cli.show_run import stop_on_interrupt
from lib_lora_train.cli.terminal import Terminal
from lib_lora_train.config.parameters import Parameter, parameters_of
from lib_lora_train.config.train_config import Concept, TrainConfig, read_config
from lib_lora_train.core.errors import ConfigError, LoraTrainError
from lib_lora_train.core.events import (
    EpochDone,
    Event,
    LoraWritten,
    Measured,
    Noted,
    PhaseEnded,
    PhaseStarted,
    Planned,
    Progress,
    Resumed,
    StateChanged,
    StepDone,
    from_record,
)
from lib_lora_train.runs.records.event_log import log_events
from tests.paths import ROOT


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three captioned images in a plain folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (96, 64), (40 * number, 90, 120)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a zorp, number {number}")
    return folder


def run(*arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "lib_lora_train", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def parsed(*words: str) -> TrainConfig:
    """The config that `train` parses from these words."""
    return cli_settings.read_cli_config(cli.parse(["train", *words]))


# --- flags -----------------------------------------------------------------------------------------

_OTHER_TEXT = {"caption_extension": ".caption", "sample_prompts": "a zorp --w 128"}


def _other_value(parameter: Parameter) -> Any:
    """A valid value that is not the default."""
    if parameter.choices:
        return next(choice for choice in parameter.choices if choice != parameter.default)
    if parameter.kind is bool:
        return not parameter.default
    if parameter.kind in (int, float):
        low = parameter.kind(parameter.low or 0)
        tried = [low, low + 1, low + 2, *([parameter.high] if parameter.high else [])]
        most = float("inf") if parameter.high is None else parameter.high
        return next(value for value in tried if value not in (parameter.default, 0) and value <= most)
    return _OTHER_TEXT.get(parameter.name, "other")


@pytest.mark.parametrize("parameter", parameters_of(TrainConfig), ids=lambda parameter: parameter.name)
def test_every_setting_is_a_flag(parameter: Parameter, monkeypatch: pytest.MonkeyPatch) -> None:
    value = _other_value(parameter)
    flag = f"--{parameter.name.replace('_', '-')}"
    words = [flag if value else f"--no-{flag[2:]}"] if parameter.kind is bool else [flag, str(value)]
    flags = vars(cli.make_parser().parse_args(["train", *words]))
    values: dict[str, Any] = {}
    assert cli_settings.override(values, flags, ()) == []
    config, problems = read_config(values)
    assert problems == ()
    expected = (value,) if parameter.kind is tuple else value
    if parameter.name in cli_settings.PATH_SETTINGS:
        expected = str(Path.cwd() / value)
    assert getattr(config, parameter.name) == expected
    assert config == TrainConfig().replace(**{parameter.name: expected}), "and nothing else changed"


_COMMAND_OPTIONS = {"configs", "resume", "preset", "out", "dry_run", "cpu", "debug", "run", "parser", "takes_settings"}


def test_command_flags_do_not_hide_settings() -> None:
    names = {p.name for p in (*parameters_of(TrainConfig), *parameters_of(Concept))}
    assert names & _COMMAND_OPTIONS == set()
    assert {p.name for p in parameters_of(TrainConfig)} & {p.name for p in parameters_of(Concept)} == set()


def test_flags_override_the_file(tmp_path: Path, images: Path) -> None:
    (tmp_path / "c.toml").write_text('rank = 4\nepochs = 3\n[[concepts]]\nfolder = "images"\ntrigger = "zorp"\n')
    config = parsed(str(tmp_path / "c.toml"), "--rank", "8", "--trigger", "blick", "--no-train-text-encoder")
    assert (config.rank, config.epochs, config.train_text_encoder) == (8, 3, False)
    assert config.concepts == (Concept(folder=str(images), trigger="blick"),)


def test_concept_can_be_given_without_a_file(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(images.parent)
    config = parsed("--folder", "images", "--repeats", "5", "--ckpt", "model.safetensors")
    assert config.concepts == (Concept(folder=str(images), repeats=5),)
    assert config.checkpoint == str(images.parent / "model.safetensors")


def test_underscores_in_flags_are_accepted() -> None:
    assert cli._hyphenated("--learning_rate=1e-4") == "--learning-rate=1e-4"
    assert cli._hyphenated("a_fox --w 128") == "a_fox --w 128"
    assert cli._hyphenated("--sample_prompts=a_fox --w 128") == "--sample-prompts=a_fox --w 128"


def test_concept_flags_are_refused_for_several_concepts(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[[concepts]]\nfolder = "a"\n[[concepts]]\nfolder = "b"\n')
    with pytest.raises(ConfigError, match=r"trigger: flags can only set a single concept"):
        parsed(str(tmp_path / "c.toml"), "--trigger", "zorp")


# --- bad input -------------------------------------------------------------------------------------


def _refusal(answer: subprocess.CompletedProcess[str]) -> str:
    """The message of a refused run: exit status 2, nothing on standard output, no traceback."""
    assert answer.returncode == 2, answer.stderr
    assert answer.stdout == ""
    assert "Traceback" not in answer.stderr
    assert answer.stderr.startswith("Error: ")
    return answer.stderr


def test_missing_settings_file_is_named(tmp_path: Path) -> None:
    message = _refusal(run("train", "nowhere.toml", folder=tmp_path))
    assert "nowhere.toml does not exist. Choose a settings file (.toml)." in message


def test_broken_toml_is_reported_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("rank = 8\nepochs = = 3\n")
    message = _refusal(run("train", "c.toml", folder=tmp_path))
    assert "c.toml is not valid TOML" in message
    assert "line 2" in message


def test_missing_image_folder_is_named(tmp_path: Path) -> None:
    message = _refusal(run("train", "--folder", "nowhere", "--dry-run", folder=tmp_path))
    assert str(tmp_path / "nowhere") in message


def test_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    assert str(tmp_path / "empty") in _refusal(run("train", "--folder", "empty", "--dry-run", folder=tmp_path))


def test_missing_concept_is_refused() -> None:
    assert "concepts" in _refusal(run("train", "--dry-run"))


def test_unknown_setting_suggests_the_nearest(images: Path) -> None:
    (images.parent / "c.toml").write_text('rankk = 8\n[[concepts]]\nfolder = "images"\ntriger = "zorp"\n')
    message = _refusal(run("train", "c.toml", "--dry-run", folder=images.parent))
    assert "rankk is not a setting. Did you mean 'rank'?" in message
    assert "concepts[1].triger is not a setting. Did you mean 'trigger'?" in message


def test_unknown_flag_suggests_the_nearest_setting(images: Path) -> None:
    message = _refusal(run("train", "--folder", images, "--network_dim", "8", "--epoch=3", "--dry-run"))
    assert "network_dim is called 'rank' here" in message
    assert "epoch is not a setting. Did you mean 'epochs'?" in message


def test_all_problems_are_reported_together(images: Path) -> None:
    """Unreadable values, values out of range and contradictions, in one message."""
    (images.parent / "c.toml").write_text(
        'rank = "many"\nepochs = 0\noptimizer = "AdamWW"\noutput_name = "../elsewhere"\n'
        "train_unet = false\ntrain_text_encoder = false\nmin_bucket = 1024\nmax_bucket = 512\n"
        '[[concepts]]\nfolder = "images"\n'
    )
    message = _refusal(run("train", "c.toml", "--dry-run", folder=images.parent))
    for where in ("rank", "epochs", "optimizer", "output_name", "train_unet", "min_bucket"):
        assert where in message
    assert "Did you mean 'AdamW'?" in message


@pytest.mark.parametrize("name", ["a/b", "..", "/tmp/x", "C:\\x"])
def test_output_name_with_path_parts_is_refused(images: Path, name: str) -> None:
    assert "output_name" in _refusal(run("train", "--folder", images, f"--output-name={name}", "--dry-run"))


def test_broken_image_is_named_and_skipped(images: Path) -> None:
    (images / "broken.png").write_bytes(b"not an image")
    answer = run("train", "--folder", images, "--resolution", "64", "--min-bucket", "64", "--dry-run")
    assert answer.returncode == 0, answer.stderr
    assert "broken.png" in answer.stdout


@pytest.mark.slow
def test_invalid_checkpoint_is_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not a checkpoint")
    answer = run("train", "--folder", images, "--ckpt", "model.safetensors", "--out", "out", folder=tmp_path)
    assert answer.returncode == 2, answer.stderr
    assert "model.safetensors" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    answer = run("train", "nowhere.toml", "--debug", folder=tmp_path)
    assert answer.returncode == 2
    assert "Traceback" in answer.stderr


def test_unknown_argument_is_refused(tmp_path: Path) -> None:
    assert "surplus" in _refusal(run("export", "c.toml", "surplus", folder=tmp_path))


def test_demo_refuses_settings() -> None:
    assert "--rank" in _refusal(run("demo", "--rank", "8"))


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["merge", "a", "b", "--method", "tyes"], "Did you mean 'ties'?"),
        (["grid", "x", "--strenghts=1"], "Unknown argument --strenghts=1. Did you mean '--strengths'?"),
        (["sweep", "--resume", "--dry_rn"], "Unknown argument --dry-rn. Did you mean '--dry-run'?"),
        (["train", "--dry-rn", "--ranc=8"], "--dry-rn is not an option. Did you mean '--dry-run'?"),
        (["train", "--dry-rn", "--ranc=8"], "ranc is not a setting. Did you mean 'rank'?"),
    ],
)
def test_misspelt_commands_flags_and_choices_get_a_suggestion(
    words: list[str], suggestion: str, tmp_path: Path
) -> None:
    answer = run(*words, folder=tmp_path)
    assert answer.returncode == 2
    assert suggestion in answer.stderr


def test_an_argument_like_no_other_gets_no_suggestion() -> None:
    message = _refusal(run("demo", "--qqqqq"))
    assert "Unknown argument --qqqqq. See --help." in message


# --- planning and running --------------------------------------------------------------------------


def test_dry_run_loads_nothing_heavy(images: Path) -> None:
    script = f"""
import sys
from lib_lora_train.cli.main import main
main(["train", "--folder", {str(images)!r}, "--repeats", "4", "--epochs", "3", "--dry-run"])
print(sorted({{"torch", "diffusers", "gradio"}} & set(sys.modules)))
"""
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
    )
    plan, _, loaded = answer.stdout.strip().rpartition("\n")
    assert loaded == "[]"
    assert "18" in plan, "3 images × 4 repeats × 3 epochs / batch 2"
    assert "time not known yet" in plan or "time about" in plan
    assert "memory about" in plan and "Estimated memory" in plan


class FakeControl:
    """The part of Control that `stop_on_interrupt` uses."""

    is_stopped = False

    def stop(self) -> None:
        self.is_stopped = True


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send itself Ctrl-C")
@pytest.mark.parametrize(
    "events", [(), (StepDone(1, 1, 0.1, {}, 0.0, 0.1),), (Resumed(5),)], ids=["no step", "a step", "resumed"]
)
def test_first_ctrl_c_stops_the_run_and_second_aborts(events: tuple[Event, ...]) -> None:
    control: Any = FakeControl()
    out = io.StringIO()
    terminal = Terminal(out)
    for event in events:
        terminal.show(event)
    out.truncate(0)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_on_interrupt(control, terminal):
        os.kill(os.getpid(), signal.SIGINT)
        assert control.is_stopped, "the run continues to the end of its step"
        os.kill(os.getpid(), signal.SIGINT)
    message = out.getvalue()
    assert message.count("Press Ctrl-C again to abort.") == 1
    assert ("saving the LoRA" in message) == bool(events), "before the first step there is none"
    assert signal.getsignal(signal.SIGINT) is before


def test_events_are_written_to_a_file(tmp_path: Path) -> None:
    events: list[Event] = [StateChanged("running"), Noted("hint", "rank", "why"), StateChanged("finished")]
    assert list(log_events(iter(events), tmp_path / "events.jsonl")) == events
    lines = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert [from_record({k: v for k, v in json.loads(line).items() if k != "time"}) for line in lines] == events


def test_events_before_a_failure_are_written(tmp_path: Path) -> None:
    def failing() -> Iterator[Event]:
        yield StateChanged("running")
        raise LoraTrainError("The disk is full.")

    with pytest.raises(LoraTrainError):
        list(log_events(failing(), tmp_path / "events.jsonl"))
    first, last = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert (first["state"], last["state"], last["message"]) == ("running", "failed", "The disk is full.")


# --- the terminal ----------------------------------------------------------------------------------


class Screen(io.StringIO):
    """A terminal or file that keeps what was written."""

    encoding = "utf-8"

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def _train(terminal: Terminal, clock: Clock, steps: range, *, total: int, seconds: float = 1.0) -> None:
    for step in steps:
        clock.now += seconds
        terminal.show(StepDone(step, 1, 0.5, {"unet": 1e-4}, 1.0, seconds))
        terminal.show(Progress("train", step, total))


def test_progress_line_shows_percentage_eta_and_loss() -> None:
    screen, clock = Screen(is_terminal=True), Clock()
    terminal = Terminal(screen, width=90, clock=clock)
    terminal.show(PhaseStarted("train", 100))
    _train(terminal, clock, range(1, 26), total=100)
    last = screen.getvalue().rpartition("\r")[2]
    assert "Training" in last and " 25%" in last and "25/100" in last
    assert "1:15 left" in last, "75 steps at 1 s each"
    assert "loss 0.5000" in last
    assert len(last.replace("\x1b[K", "")) <= 90


def test_samples_in_between_do_not_change_the_training_eta() -> None:
    screen, clock = Screen(is_terminal=True), Clock()
    terminal = Terminal(screen, width=90, clock=clock)
    terminal.show(PhaseStarted("train", 20))
    _train(terminal, clock, range(1, 11), total=20)
    terminal.show(PhaseStarted("samples", 2))
    terminal.show(Progress("samples", 1, 2))
    terminal.show(Progress("samples", 2, 2))
    terminal.show(PhaseEnded("samples", 0.0))
    _train(terminal, clock, range(11, 16), total=20)
    assert "0:05 left" in screen.getvalue().rpartition("\r")[2]


def test_permanent_lines_do_not_mix_with_the_progress_line() -> None:
    screen, clock = Screen(is_terminal=True), Clock()
    terminal = Terminal(screen, width=90, clock=clock)
    terminal.show(PhaseStarted("train", 4))
    _train(terminal, clock, range(1, 3), total=4)
    terminal.show(EpochDone(1, 2, 0.25))
    terminal.show(LoraWritten("models/Lora/a-000001.safetensors", 1, 2))
    shown = screen.getvalue()
    assert "\r\x1b[KEpoch 1: mean loss 0.2500\nSaved: models/Lora/a-000001.safetensors\n" in shown


def test_log_file_gets_whole_lines_and_not_too_many() -> None:
    screen, clock = Screen(is_terminal=False), Clock()
    terminal = Terminal(screen, clock=clock)
    terminal.show(Planned(16, 24, 5, 4, 20))
    terminal.show(PhaseStarted("train", 1000))
    _train(terminal, clock, range(1, 1001), total=1000, seconds=0.1)
    terminal.show(PhaseEnded("train", 100.0))
    lines = screen.getvalue().splitlines()
    assert "\r" not in screen.getvalue() and "\x1b" not in screen.getvalue()
    assert lines[0] == "Plan: 16 images and 24 regularisation images; 5 steps × 4 epochs, 20 steps in total"
    assert lines[-1] == "Training: done in 1:40"
    assert 10 <= len(lines) <= 14, "one line every 10 s of 100 s, the first, the last, and these two"


def test_measured_values_and_notes_are_shown() -> None:
    screen = Screen(is_terminal=False)
    terminal = Terminal(screen)
    terminal.show(Measured(0, {"concept": 0.0}))
    terminal.show(Measured(2, {"concept": 0.96875, "drift": 0.0123}))
    terminal.show(Noted("warning", "broken.png", "is not an image."))
    assert screen.getvalue().splitlines() == [
        "Without LoRA: concept 0",
        "Epoch 2: concept 0.969, drift 0.0123",
        "warning: broken.png is not an image.",
    ]


def test_console_without_unicode_gets_ascii_bars() -> None:
    screen, clock = Screen(is_terminal=True), Clock()
    screen.encoding = "cp1252"
    terminal = Terminal(screen, width=90, clock=clock)
    terminal.show(PhaseStarted("latents", 2))
    terminal.show(Progress("latents", 1, 2))
    screen.getvalue().encode("cp1252")
    assert "#" in screen.getvalue()


@pytest.mark.parametrize("name", ["missing.safetensors", "image.png"])
def test_dry_run_refuses_a_checkpoint_that_training_would_refuse(name: str, images: Path, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 100)
    message = _refusal(run("train", "--folder", images, "--ckpt", tmp_path / name, "--dry-run"))
    assert "checkpoint" in message and name in message


def test_dry_run_names_the_model_and_its_own_resolution(images: Path) -> None:
    answer = run("train", "--folder", images, "--dry-run")
    assert "tiny-sd: SD1, predicts noise (epsilon), 128 px, its own VAE" in answer.stdout
    assert "512 is far from the 128 px" in answer.stdout
