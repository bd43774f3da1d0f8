"""The files in a run's folder."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import OutputError, TrainingError


@dataclass(frozen=True)
class RunFolder:
    """A folder with all files of one run except the LoRA files."""

    root: Path

    @property
    def log(self) -> Path:
        """Log, one JSON event per line."""
        return self.root / "events.jsonl"

    @property
    def config(self) -> Path:
        """The settings, ready to train again."""
        return self.root / "config.toml"

    @property
    def identity(self) -> Path:
        """The run's `Identity`."""
        return self.root / "run.json"

    @property
    def origin(self) -> Path:
        """The sweep that the run belongs to, if it does."""
        return self.root / "origin.json"

    @property
    def states(self) -> Path:
        """Folder of training states: `step-00000120.pt` resumes after 120 steps."""
        return self.root / "states"

    @property
    def samples(self) -> Path:
        """Folder of samples: `epoch-000003-02.png` is epoch 3, prompt 2 (from 1); epoch 0 is without LoRA.

        `step-00000120-02.png` was made within an epoch.
        """
        return self.root / "samples"

    @property
    def grid(self) -> Path:
        """The grid of epochs × prompts."""
        return self.root / "grid.png"

    @property
    def old_epoch_grid(self) -> Path:
        """The grid drawn after the run by a version that kept only one."""
        return self.root / "epoch-grid.png"

    @property
    def epoch_grids(self) -> Path:
        """Folder of the grids drawn after the run: what each shows, and the images of their cells."""
        return self.root / "epoch-grid"

    @property
    def report(self) -> Path:
        """The demo's measurements."""
        return self.root / "report.json"

    @property
    def image_losses(self) -> Path:
        """The losses of every training image."""
        return self.root / "image-losses.json"

    @property
    def tags(self) -> Path:
        """What was measured of every tag of the dataset."""
        return self.root / "tags.json"

    @property
    def crash_report(self) -> Path:
        """The traceback if the run failed unexpectedly."""
        return self.root / "crash.txt"

    def state_path(self, step: int) -> Path:
        """The training state after this step."""
        return self.states / f"step-{step:08}.pt"

    def recent_state_path(self, step: int) -> Path:
        """The state kept by time, of which there is only one, beside those of epochs."""
        return self.states / f"recent-{step:08}.pt"

    def saved_states(self) -> dict[int, Path]:
        """All saved training states by step, in order."""
        paths = (*self.states.glob("recent-*.pt"), *self.states.glob("step-*.pt"))
        numbered = [(path.stem.partition("-")[2], path) for path in paths]
        return dict(sorted((int(number), path) for number, path in numbered if number.isdecimal()))

    def state_steps(self) -> list[int]:
        """The steps of the saved training states, in order."""
        return list(self.saved_states())

    def trained_form(self, lora: str) -> Path:
        """The LoRA file of this name as it was trained, if the one beside the webui's is in another form."""
        return self.root / "trained-form" / lora

    def sample(self, epoch: int, number: int, step: int = 0) -> Path:
        """The sample of prompt `number` (from 1), after an epoch or, if `step` is given, within one."""
        stem = f"step-{step:08}" if step else f"epoch-{epoch:06}"
        return self.samples / f"{stem}-{number:02}.png"

    def strength_sample(self, epoch: int, strength: float, number: int) -> Path:
        """The image of prompt `number` (from 1) with an epoch at a strength: `epoch-000003-x1.5-02.png`."""
        return self.root / "strengths" / f"epoch-{epoch:06}-x{strength:g}-{number:02}.png"

    def tag_image(self, lora: str, prompt: str, number: int) -> Path:
        """Image `number` (from 1) of a prompt in the report on tags, with the LoRA file of this name, "" for none."""
        digest = hashlib.sha256(f"{lora}/{prompt}".encode()).hexdigest()[:16]
        return self.root / "tags" / f"{digest}-{number:02}.png"


@dataclass(frozen=True)
class Identity:
    """What a resumed run keeps: the name and folder of its LoRA files, its session id and its start time.

    `model` has the values of the `ModelIdentity` that it is trained on; `roots` is where the run folder has been.
    """

    name: str
    lora_dir: str
    session: str
    started: float
    model: Mapping[str, str] = field(default_factory=dict)
    roots: list[str] = field(default_factory=list)


def write_identity(folder: RunFolder, identity: Identity) -> None:
    """Write it atomically; OutputError if that fails."""
    write_json(folder.identity, asdict(identity))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write the values atomically; OutputError if that fails."""
    text = json.dumps(values, indent=1, ensure_ascii=False)
    atomic_write.write_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))  # JSON's own escapes


def read_identity(folder: RunFolder) -> Identity:
    """The run's identity; TrainingError if the folder has none."""
    try:
        values = json.loads(folder.identity.read_text(encoding="utf-8"))
        identity = Identity(**{name: values[name] for name in Identity.__dataclass_fields__ if name in values})
        if not isinstance(identity.name, str) or not isinstance(identity.lora_dir, str):
            raise ValueError("not an identity")
        return identity
    except (OSError, ValueError, TypeError):
        text = f"{folder.root} is not a resumable run folder. Choose another run or start a new one."
        raise TrainingError(text) from None


def new_run_folder(home: Path, name: str) -> RunFolder:
    """A new folder `home/20260131-184500-name`; OutputError if it cannot be created."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        folder = RunFolder(home / f"{stamp}-{name}{suffix}")
        try:
            folder.samples.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise OutputError(
                f"Cannot create the run folder {folder.root}: {error.strerror}. Choose another location."
            ) from error
        return folder
    raise OutputError(f"{home} already has 1000 runs started in this second. Choose another location.")
