"""Fakes for tests of the page: a runner with preset events and curves, and a small dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import HostError
from lib_lora_train.core.events import Event
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.records.event_log import EventLog, log_record
from lib_lora_train.web.session import Session


class FakeRunner:
    """A `Runner` with events and curves that a test sets."""

    active_run = ""

    def __init__(self) -> None:
        self.host: Any = StandaloneHost(None, None, Path("Lora"), "cpu")
        self.started: list[TrainConfig] = []
        self.commands: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.losses: list[tuple[int, float]] = []
        self.is_busy = False
        self.home = Path()

    def places(self) -> None:
        """Folders are not tried."""

    def start(self, config: TrainConfig, job: Any = None) -> str:
        if self.is_busy:
            raise HostError("A training is already running.")
        self.started.append(config)
        return "run"

    def pause(self) -> None:
        self._command("pause")

    def resume(self) -> None:
        self._command("resume")

    def stop(self) -> None:
        self._command("stop")

    def drop(self) -> None:
        self._command("drop")

    def save_now(self) -> None:
        self._command("save")

    def sample_now(self) -> None:
        self._command("sample")

    def _command(self, name: str) -> None:
        if not self.is_busy:
            raise HostError("No training is running.")
        self.commands.append(name)

    def status(self, since: int = 0) -> dict[str, Any]:
        events = self.events[since:]
        return {"run": "run", "state": "running", "events": events, "next": len(self.events), "config": {}}

    def lora_paths(self) -> tuple[Path, ...]:
        return tuple(Path(event["path"]) for event in self.events if event["kind"] == "LoraWritten")

    def note(self, run: str, *events: Event) -> None:
        log = EventLog(self.home / run / "events.jsonl")
        for event in events:
            log.append(log_record(event))

    def loss_curve(self, max_points: int = 1000) -> list[tuple[int, float]]:
        return self.losses[:: max(1, len(self.losses) // max_points)]

    def norm_curve(self, max_points: int = 1000) -> list[tuple[int, float]]:
        return [(step, 0.5) for step, _ in self.loss_curve(max_points)]

    def memory_curve(self, max_points: int = 1000) -> list[tuple[int, float]]:
        return [(step, 3.5) for step, _ in self.loss_curve(max_points)]

    def memory(self) -> dict[str, float] | None:
        return None

    def rate_curves(self, max_points: int = 1000) -> dict[str, list[tuple[int, float]]]:
        return {"unet": [(step, 1e-4) for step, _ in self.loss_curve(max_points)]}


def write_images(folder: Path, number: int, *, size: tuple[int, int] = (96, 64)) -> Path:
    """`number` different images with captions."""
    folder.mkdir(parents=True)
    for n in range(number):
        Image.new("RGB", size, (n * 37 % 256, n * 91 % 256, 80)).save(folder / f"{n:03}.png")
        (folder / f"{n:03}.txt").write_text(f"zkw, image {n}", encoding="utf-8")
    return folder


def small_config(folder: Path) -> TrainConfig:
    """Valid settings for images of `write_images`."""
    concepts = (Concept(str(folder), trigger="zkw"),)
    return TrainConfig(concepts=concepts, resolution=64, min_bucket=64, output_name="small", sample_prompts=("zkw",))


def open_small_session(tmp_path: Path, *, images: int = 3) -> tuple[Session, FakeRunner]:
    """A session whose demo is a small dataset."""
    folder = write_images(tmp_path / "set", images)
    runner = FakeRunner()
    runner.home = tmp_path / "home"
    session = Session(runner, tmp_path / "home", demo=lambda: small_config(folder))  # type: ignore[arg-type]
    return session, runner


def wiring_of(session: Session) -> Any:
    """The callbacks behind the buttons, without a page."""
    import gradio as gr

    from lib_lora_train.ui import tab
    from lib_lora_train.ui.dataset import build_dataset_panel
    from lib_lora_train.ui.training import build_train_panel

    with gr.Blocks():
        dataset, train = (
            build_dataset_panel(session.draft()),
            build_train_panel(session.draft(), session.presets.names()),
        )
    return tab._Wiring(session, None, dataset, train)  # type: ignore[arg-type]
