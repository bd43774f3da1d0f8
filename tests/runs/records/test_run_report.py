"""The report of a failed run: everything that a bug report needs, nothing personal, whatever is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.cli.main import main
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.anonymous import Anonymiser
from lib_lora_train.core.events import ImagesRated, LoraWritten, Noted, SampleDrawn, StateChanged, StepDone, TagsRated
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.runs.records.event_log import log_line, log_record
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.run_report import RunFacts, make_report, read_place, read_report

PERSONAL = ("anna", "meyer", "zoltan", "holiday", "beach", "secret", "portrait", "mymix", "blushing", "gift for")


def personal_run(tmp_path: Path) -> RunFolder:
    """A failed run whose every text is personal."""
    data = tmp_path / "Anna Meyer" / "10_zoltan holiday"
    data.mkdir(parents=True)
    for name in ("beach one.png", "secret.png", "meyer portrait"):
        (data / name).touch()
    folder = RunFolder(tmp_path / "home" / "20260101-000000-annas-lora")
    folder.samples.mkdir(parents=True)
    config = TrainConfig(
        concepts=(Concept(folder=str(data), trigger="zoltan meyer", class_word="blushing"),),
        checkpoint=str(tmp_path / "models" / "mymix.safetensors"),
        output_name="annas-lora",
        output_dir=str(tmp_path / "Anna Meyer" / "loras"),
        comment="gift for Anna",
        sample_prompts=("zoltan meyer at the beach --s 20",),
        caption_prefix="secret ",
        leave_out_tags=("blushing cheeks",),
        rank=12,
        optimizer="Prodigy",
    )
    write_toml_config(folder.config, config)
    lora = tmp_path / "Anna Meyer" / "loras" / "annas-lora-000001.safetensors"
    events: list[Any] = [
        StateChanged("running"),
        Noted("warning", str(data / "beach one.png"), f"{data / 'beach one.png'}: is small. secret.png too."),
        Noted("hint", "leave_out_tags", "Left out of this run's captions: blushing cheeks (3 captions)."),
        Noted("hint", "captions", "zoltan meyer: no caption has it; see meyer portrait in 10_zoltan holiday."),
        *(StepDone(step, 1, 0.5, {"unet": 1e-4}, 1.0, 0.1) for step in range(1, 200)),
        LoraWritten(str(lora), 1, 199),
        ImagesRated(1, 3, {str(data / "beach one.png"): "The image beach one.png was not learnt."}),
        TagsRated(1, 2, {"ignored": 1}, {"secret garden": "secret garden is ignored."}),
        SampleDrawn(str(folder.sample(1, 1)), 1, "zoltan meyer at the beach", 7),
        StateChanged("failed", f"ValueError: {data} is odd. Details: {folder.crash_report}"),
    ]
    folder.log.write_text("".join(log_line(log_record(event)) for event in events), encoding="utf-8")
    code = tmp_path / "Anna Meyer" / "webui" / "extensions" / "x" / "lib_lora_train" / "training" / "loop.py"
    library = r"C:\Users\Anna Meyer\venv\Lib\site-packages\torch\nn\modules\linear.py"
    folder.crash_report.write_text(
        f'Traceback (most recent call last):\n  File "{code}", line 12, in step\n    raise ValueError(path)\n'
        f'  File "{library}", line 3, in forward\n'
        f"ValueError: C:\\Users\\Anna Meyer\\secret\\beach one.png and /mnt/anna meyer/zoltan are odd\n"
        f"OSError: [Errno 28] No space left on device: '{data / 'secret.png'}'\n",
        encoding="utf-8",
    )
    return folder


def test_nothing_personal_is_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    report = read_report(personal_run(tmp_path), "A1111")
    assert [word for word in PERSONAL if word in report.casefold()] == [], report
    assert str(tmp_path) not in report


def test_everything_that_a_bug_report_needs_is_there(tmp_path: Path) -> None:
    report = read_report(personal_run(tmp_path), "A1111")
    for line in ("LoRA Train: ", "Host: A1111", "Python: 3.", "torch: ", "diffusers: ", "transformers: ", "peft: "):
        assert line in report
    for line in ("gradio: ", "GPU: ", "CPU: ", "rank = 12", 'optimizer = "Prodigy"', "ValueError", "Errno 28"):
        assert line in report
    assert "lib_lora_train/training/loop.py" in report and "site-packages/torch/nn/modules/linear.py" in report
    assert '"step": 199' in report and '"step": 150' not in report, "of the steps, only the last ones"
    assert '"state": "failed"' in report and "is small" in report, "an early warning is not pushed out by steps"


def test_the_same_name_has_the_same_placeholder() -> None:
    anonymiser = Anonymiser({"/data/my cats": "dataset"}, {"Tom": "trigger"})
    assert anonymiser.text("/data/my cats/a.png, then b.png and '/data/my cats' of TOM; a.png, tomato") == (
        "<dataset-1>/<file-1>.png, then <file-2>.png and '<dataset-1>' of <trigger-1>; <file-1>.png, tomato"
    )
    assert anonymiser.text("1 / 2 and images/epoch: 3.5 it/s") == "1 / 2 and images/epoch: 3.5 it/s"


@pytest.mark.parametrize("damage", ["gone", "binary", "folder", "odd values"])
@pytest.mark.parametrize("file", ["config.toml", "events.jsonl", "crash.txt", "all"])
def test_damaged_files_still_give_a_report(tmp_path: Path, file: str, damage: str) -> None:
    folder = personal_run(tmp_path)
    for path in [folder.config, folder.log, folder.crash_report] if file == "all" else [folder.root / file]:
        path.unlink()
        if damage == "binary":
            path.write_bytes(b"\x00\xff\xfe[[[\x80" * 100)
        elif damage == "folder":
            path.mkdir()
        elif damage == "odd values":
            path.write_text('concepts = [3]\noutput_name = 5\nsample_prompts = "x"\nunknown = 2020-01-01\n')
    report = read_report(folder, "stand-alone")
    assert all(f"## {title}" in report for title in ("Versions", "Settings", "Last events", "Traceback"))


def test_a_name_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    facts = RunFacts({}, {"rank": 4}, "", (), "ValueError: \udce9")
    make_report(facts, read_place(RunFolder(tmp_path), {})).encode("utf-8")


def test_the_command_prints_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(personal_run(tmp_path).root)]) == 0
    assert "rank = 12" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "is not a run. Give" in capsys.readouterr().err
