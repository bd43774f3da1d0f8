"""The files `report.json`: of a sweep, its comparison; of the demo, what was measured, also after its end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.runs.measures.image_list import image_values, read_images
from lib_lora_train.runs.measures.tag_list import read_tags, tag_values
from lib_lora_train.runs.records.event_log import read_log
from lib_lora_train.runs.records.folder import RunFolder, write_json
from lib_lora_train.runs.records.history import newest_advice
from lib_lora_train.runs.sweeps.comparison_report import comparison_values
from lib_lora_train.runs.sweeps.sweep_record import Sweep, find_members, make_report_folder, read_sweep_of
from lib_lora_train.runs.sweeps.sweep_runs import read_comparison


def refresh_reports(folder: RunFolder) -> None:
    """Bring the run's report, and that of its sweep, up to date, if it has them.

    Never raises: what they say is in the logs too, and no run may end for them.
    """
    try:
        if folder.report.is_file():
            _write_own_report(folder)
        if sweep := read_sweep_of(folder):
            write_sweep_report(folder.root.parent, sweep)
    except (LoraTrainError, OSError, ValueError):
        return


def rated_values(folder: RunFolder) -> dict[str, Any]:
    """The run's images by loss and its tags for JSON, those that stand out first; [] for what was not measured."""
    images, tags = read_images(folder), read_tags(folder)
    return {"images": image_values(images) if images else [], "tags": tag_values(tags) if tags else []}


def write_sweep_report(home: Path, sweep: Sweep) -> None:
    """Write the comparison of a sweep's runs, and what became of each; OutputError if that fails."""
    members = find_members(home, sweep)
    base = [sweep.base] if sweep.base and (home / sweep.base).is_dir() else []
    comparison = read_comparison(home, [*base, *(member.run for member in members if member.run)])
    runs = [
        {"run": member.run, "state": member.state, "changes": dict(planned.changes)}
        for member, planned in zip(members, sweep.runs, strict=True)
    ]
    values = {"sweep": sweep.id, "base": sweep.base, "runs": runs, **comparison_values(comparison)}
    write_json(make_report_folder(home, sweep) / "report.json", values)


def _write_own_report(folder: RunFolder) -> None:
    """The report as it was, with the newest advice, images and tags."""
    values = json.loads(folder.report.read_text(encoding="utf-8"))
    if not isinstance(values, Mapping):
        raise ValueError("not a report")
    advice = newest_advice(read_log(folder.log)) or values.get("advice")
    write_json(folder.report, {**values, "advice": advice, **rated_values(folder)})
