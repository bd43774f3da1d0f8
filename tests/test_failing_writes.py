"""Every function that writes, by its name (`write_…`, `save_…`), has a test in which the writing fails."""

from __future__ import annotations

import ast
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from lib_lora_train.adapters.files.conversion import Converted
from lib_lora_train.adapters.files.lora_file import write_adapter
from lib_lora_train.adapters.files.rename import write_renamed
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import OutputError
from lib_lora_train.core.events import Noted
from lib_lora_train.dataset_tools import repairs
from lib_lora_train.dataset_tools.checkup import Finding
from lib_lora_train.dataset_tools.upscale import upscale_lanczos, write_upscaled
from lib_lora_train.formats.kohya.exporter import write_exported
from lib_lora_train.formats.lora_card import write_card, write_preview
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.lora_tools import merge_into_checkpoint
from lib_lora_train.lora_tools.convert import write_converted
from lib_lora_train.lora_tools.extract import Extracted, write_extracted
from lib_lora_train.lora_tools.resize import Resized, write_resized
from lib_lora_train.models.latent_cache import Posterior, write_posterior
from lib_lora_train.models.tensor_cache import write_tensors
from lib_lora_train.models.text_cache import write_condition
from lib_lora_train.models.text_encoding import TextCondition
from lib_lora_train.runs import checkpoints
from lib_lora_train.runs.images.epoch_grid import GridSheet, write_sheet
from lib_lora_train.runs.measures.image_list import ImageList, write_images
from lib_lora_train.runs.measures.tag_list import TagList, write_tags
from lib_lora_train.runs.records.crash_report import write_traceback
from lib_lora_train.runs.records.folder import Identity, RunFolder, write_identity, write_json
from lib_lora_train.runs.state_clock import StateClock
from lib_lora_train.runs.sweeps.sweep_record import write_sweep
from lib_lora_train.sampling.infotext import write_image
from lib_lora_train.web.form import fill_form, save_draft
from lib_lora_train.web.uploads import write_upload
from tests.paths import PACKAGE, ROOT
from tests.stand_ins.tiny_models import write_tiny_checkpoint
from tests.stand_ins.ui import open_small_session, wiring_of

ONE = torch.ones(4)
Write = Callable[[Path], object]

# Function → a call that writes into the folder; on a full disk it raises and leaves nothing.
CASES: dict[str, Write] = {
    "adapters.files.lora_file.write_adapter": lambda place: write_adapter(
        place / "a.safetensors", {"a.alpha": ONE}, metadata={}, precision="fp16"
    ),
    "formats.kohya.exporter.write_exported": lambda place: write_exported(place / "a.json", TrainConfig(), "kohya_ss"),
    "formats.lora_card.write_card": lambda place: write_card(place / "a.safetensors", {"sd version": "SD1"}),
    "formats.lora_card.write_preview": lambda place: write_preview(
        place / "a.safetensors", lambda path: path.write_text("half an image", encoding="utf-8")
    ),
    "formats.toml.write_toml_config": lambda place: write_toml_config(place / "a.toml", TrainConfig()),
    "lora_tools.convert.write_converted": lambda place: write_converted(
        place / "a.safetensors", Converted({"a.alpha": ONE}, 0.0, "", (), "fp16"), to="lora", rank=1, metadata={}
    ),
    "lora_tools.extract.write_extracted": lambda place: write_extracted(
        place / "a.safetensors", Extracted(Converted({"a.alpha": ONE}, 0.0, "", (), "fp16"), {"a": 1}, 0.0, (), {})
    ),
    "lora_tools.resize.write_resized": lambda place: write_resized(
        place / "a.safetensors", Resized(Converted({"a.alpha": ONE}, 0.0, "", (), "fp16"), {"a": 1}), {}
    ),
    "models.latent_cache.write_posterior": lambda place: write_posterior(place / "a.st", Posterior(ONE, ONE.clone())),
    "models.tensor_cache.write_tensors": lambda place: write_tensors(place / "a.st", {"a": ONE}, "tensors"),
    "models.text_cache.write_condition": lambda place: write_condition(place / "a.st", TextCondition(ONE, None)),
    "runs.images.epoch_grid.write_sheet": lambda place: write_sheet(
        RunFolder(place), GridSheet("a", "Euler", (), (), 0.0)
    ),
    "runs.records.folder.write_identity": lambda place: write_identity(RunFolder(place), Identity("a", "b", "c", 0.0)),
    "runs.records.folder.write_json": lambda place: write_json(place / "a.json", {}),
    "runs.measures.image_list.write_images": lambda place: write_images(RunFolder(place), ImageList(1, (), {})),
    "runs.measures.tag_list.write_tags": lambda place: write_tags(RunFolder(place), TagList(1, "zok", {}, ())),
    "runs.sweeps.sweep_record.write_sweep": lambda place: write_sweep(place, "", (), "a"),
    "sampling.infotext.write_image": lambda place: write_image(place / "a.png", Image.new("RGB", (8, 8))),
    "web.uploads.write_upload": lambda place: write_upload(place, "a.png", b"x"),
    "web.form.save_draft": lambda place: save_draft(place, fill_form(TrainConfig())),
}
_HERE = "tests/test_failing_writes.py"
_RESUME = "tests/runs/test_resume.py"
_LORA = f"{_RESUME}::test_lora_that_cannot_be_written_pauses_until_it_can"
_STATE = f"{_RESUME}::test_state_that_cannot_be_written_pauses_once_and_then_only_warns"
_ATOMIC = "tests/core/test_atomic_write.py::test_a_failed_write_keeps_the_old_file_and_no_temporary_file"
_CAPTIONS = "tests/dataset_tools/test_caption_files.py::test_a_failed_write_reverts_the_others"
_EDITS = f"{_HERE}::test_edits_of_a_dataset_on_a_full_disk_change_nothing"
_UNDO = f"{_HERE}::test_an_undo_on_a_full_disk_can_be_repeated"
_PAGE = f"{_HERE}::test_the_page_survives_a_full_disk"
_CHECKPOINT = f"{_HERE}::test_a_checkpoint_on_a_full_disk_is_an_error"
_STATE_FILE = "tests/training/test_loop.py::test_a_state_that_cannot_be_written_leaves_the_old_one"
_CROP = "tests/dataset_tools/test_crops.py::test_if_the_mask_cannot_be_written_the_image_is_unchanged"

# Function → the test in which its writing fails.
COVERED: dict[str, str] = {
    **dict.fromkeys(CASES, f"{_HERE}::test_on_a_full_disk_nothing_is_left"),
    "adapters.files.rename.write_renamed": f"{_HERE}::test_a_rename_on_a_full_disk_keeps_the_file",
    "core.atomic_write.write_bytes": _ATOMIC,
    "core.atomic_write.write_text": _ATOMIC,
    "dataset_tools.caption_files.write_plan": _CAPTIONS,
    "dataset_tools.caption_files.write_undo": _UNDO,
    "dataset_tools.crops.write_crop": _CROP,
    "dataset_tools.repairs.write_repairs": _EDITS,
    "dataset_tools.repairs.write_replacements": _EDITS,
    "dataset_tools.repairs.write_replacements_one_by_one": _EDITS,
    "dataset_tools.repairs.write_undo": _UNDO,
    "dataset_tools.upscale.write_upscaled": _EDITS,
    "lora_tools.changed_copy.write_changed_copy": (
        "tests/lora_tools/test_merge_into_anima.py::test_a_full_disk_is_an_error_and_leaves_nothing"
    ),
    "lora_tools.edit_metadata.write_edited": "tests/lora_tools/test_edit_metadata.py::test_a_full_disk_leaves_nothing",
    "lora_tools.merge_into_checkpoint.write_merged_checkpoint": _CHECKPOINT,
    "lora_tools.new_model_folder.write_model_copy": (
        "tests/lora_tools/test_merge.py::test_a_model_folder_that_cannot_be_written_leaves_nothing"
    ),
    "runs.checkpoints.save_due_step_lora": _LORA,
    "runs.checkpoints.save_epoch_lora": _LORA,
    "runs.checkpoints.save_step_lora": _LORA,
    "runs.checkpoints.save_recent_state": f"{_HERE}::test_a_state_by_time_on_a_full_disk_warns_once",
    "runs.checkpoints.save_training_state": _STATE,
    "runs.records.reports.write_sweep_report": (
        "tests/runs/records/test_reports.py::test_a_report_that_cannot_be_written_ends_nothing"
    ),
    "runs.records.crash_report.write_traceback": f"{_HERE}::test_a_traceback_on_a_full_disk_is_left_out",
    "training.training_state.write_state": _STATE_FILE,
    "ui.tab._Wiring.save_draft": _PAGE,
    "ui.tab._Wiring.save_preset": _PAGE,
    "web.advice.AdviceSession.write_card": "tests/web/test_advice.py::test_a_card_on_a_full_disk_is_as_it_was",
    "web.form_session.FormSession.save_draft": _PAGE,
    "web.form_session.FormSession.save_preset": _PAGE,
}
REQUESTS = {"runs.runner.Runner.save_now", "core.control.Control.save_now"}
"""These write nothing: they ask the run to."""


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to fill the disk: files can be created, and then nothing more is written."""

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_file(path: Path, *_: Any, **__: Any) -> Any:
        path.touch()
        full()

    def fill() -> None:
        monkeypatch.setattr("os.fsync", full)
        monkeypatch.setattr(Path, "replace", full)
        monkeypatch.setattr(Path, "write_text", full_file)
        monkeypatch.setattr(Path, "write_bytes", full_file)

    return fill


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- every function has a case -------------------------------------------------------------------


def writers() -> Iterator[str]:
    """Module and name of every function whose name says that it writes."""
    for file in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        yield from _writers_in(ast.parse(file.read_text(encoding="utf-8")), module)


def _writers_in(node: ast.AST, place: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        inside = f"{place}.{child.name}" if named else place  # type: ignore[attr-defined]
        if named and not isinstance(child, ast.ClassDef) and child.name.startswith(("write_", "save_")):  # type: ignore[attr-defined]
            yield inside
        yield from _writers_in(child, inside)


def test_every_function_that_writes_has_a_test_in_which_that_fails() -> None:
    found = set(writers())
    assert sorted(found - set(COVERED) - REQUESTS) == [], "add a case of a failing write, and its name here"
    assert sorted((set(COVERED) | REQUESTS) - found) == [], "these are gone; remove them here"


@pytest.mark.parametrize("test", sorted(set(COVERED.values())))
def test_the_tests_of_failing_writes_exist(test: str) -> None:
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


# --- the cases -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_on_a_full_disk_nothing_is_left(name: str, tmp_path: Path, full_disk: Callable[[], None]) -> None:
    full_disk()
    expected = OSError if name.startswith("formats.lora_card") else OutputError
    with pytest.raises(expected, match=r"[Nn]o space left"):
        CASES[name](tmp_path)
    assert contents(tmp_path) == {}


def test_a_rename_on_a_full_disk_keeps_the_file(tmp_path: Path, full_disk: Callable[[], None]) -> None:
    old = tmp_path / "a.safetensors"
    write_adapter(old, {"a.alpha": ONE}, metadata={"ss_output_name": "a"}, precision="fp16")
    before = contents(tmp_path)
    full_disk()
    with pytest.raises(OSError, match="No space left"):
        write_renamed(old, tmp_path / "b.safetensors")
    assert contents(tmp_path) == before


def test_a_traceback_on_a_full_disk_is_left_out(tmp_path: Path, full_disk: Callable[[], None]) -> None:
    full_disk()
    assert not write_traceback(ValueError("odd"), RunFolder(tmp_path))


def test_a_state_by_time_on_a_full_disk_warns_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OutputError("No space left.")

    monkeypatch.setattr(checkpoints, "write_state", full)
    monkeypatch.setattr("lib_lora_train.runs.state_clock._SECONDS", -1.0)
    run: Any = SimpleNamespace(
        plan=SimpleNamespace(steps_per_epoch=10, total_steps=100),
        state_clock=StateClock(),
        saved_state_step=0,
        config=SimpleNamespace(save_state=True),
        folder=RunFolder(tmp_path),
        has_paused_for_state=False,
    )
    training: Any = SimpleNamespace(step=5, is_resumable=True, state=lambda: None)
    first = list(checkpoints.save_recent_state(run, training))
    assert len(first) == 1 and isinstance(first[0], Noted) and first[0].level == "warning"
    assert list(checkpoints.save_recent_state(run, training)) == [] and run.saved_state_step == 0


def test_a_checkpoint_on_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(merge_into_checkpoint, "save_file", full)
    monkeypatch.setattr(merge_into_checkpoint, "add_to_layers", lambda *_: (0, ()))
    monkeypatch.setattr(merge_into_checkpoint, "merged_metadata", lambda _: {"modelspec.merged_from": ""})
    checkpoint = write_tiny_checkpoint(tmp_path / "model.safetensors", "sd1", shallow=True)
    with pytest.raises(OutputError, match="No space left"):
        merge_into_checkpoint.write_merged_checkpoint(checkpoint, [], tmp_path / "new.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (60, 60)).save(folder / "a.png")
    return folder


@pytest.mark.parametrize("edit", ["repairs", "replacements", "one by one", "upscaled"])
def test_edits_of_a_dataset_on_a_full_disk_change_nothing(
    edit: str, dataset: Path, full_disk: Callable[[], None]
) -> None:
    before, image = contents(dataset), dataset / "a.png"
    full_disk()
    if edit == "replacements":
        with pytest.raises(OutputError, match="No space left"):
            repairs.write_replacements(dataset, {image: (image, b"new")}, "crop")
    else:
        finding = Finding("no caption", "warning", image, "", repair="write caption")
        result = {
            "repairs": lambda: repairs.write_repairs(dataset, [finding], words="zkw"),
            "one by one": lambda: repairs.write_replacements_one_by_one(dataset, [(image, (image, b"new"))], "crop"),
            "upscaled": lambda: write_upscaled(dataset, [image], 128, upscale_lanczos),
        }[edit]()
        assert result.repaired == () and "No space left" in result.failed[0][1]
    assert contents(dataset) == before


def test_an_undo_on_a_full_disk_can_be_repeated(
    dataset: Path, full_disk: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, image = contents(dataset), dataset / "a.png"
    record = repairs.write_replacements(dataset, {image: (image, b"new")}, "crop")
    assert record and image.read_bytes() == b"new"
    full_disk()
    with pytest.raises(OutputError, match="No space left"):
        repairs.write_undo(record)
    assert image.read_bytes() == b"new"
    monkeypatch.undo()
    assert repairs.write_undo(record) == 1 and contents(dataset) == before


def test_the_page_survives_a_full_disk(tmp_path: Path, full_disk: Callable[[], None]) -> None:
    session, _ = open_small_session(tmp_path)
    wiring = wiring_of(session)
    values = [session.draft()[key] for key in wiring.fields]
    full_disk()
    wiring.save_draft(*values)
    assert "No space left" in str(wiring.save_preset("mine", *values))
    with pytest.raises(OutputError, match="No space left"):
        session.save_draft(session.draft())
    with pytest.raises(OutputError, match="No space left"):
        session.save_preset(session.draft(), "mine")
    assert "mine" not in session.presets.names()


def test_a_file_in_use_is_not_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows writes the new file, but does not delete the old one while another program has it open."""
    old, unlink = tmp_path / "a.safetensors", Path.unlink
    write_adapter(old, {"a.alpha": ONE}, metadata={"ss_output_name": "a"}, precision="fp16")
    before = contents(tmp_path)

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path == old:
            raise PermissionError(13, "in use by another program", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(PermissionError):
        write_renamed(old, tmp_path / "b.safetensors")
    assert contents(tmp_path) == before
