"""The report on a run's tags, as it is kept in its folder, and rated. Does not import PyTorch."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from lib_lora_train.core.events import TagsRated
from lib_lora_train.evaluation.tag_report import RatedTag, TagMeasure, TagPull, rate_tags
from lib_lora_train.runs.records.folder import RunFolder, write_json

_VALUES = ("without", "nonsense", "having", "effect", "floor")
_PULL_VALUES = ("without", "nonsense", "own", "pulled")


@dataclass(frozen=True)
class TagList:
    """What was measured of the tags of a run with a LoRA file, which is of an epoch (0: of none).

    `lora` is the file's name without extension, `alone` what stands for each trigger in prompts.
    """

    epoch: int
    lora: str
    alone: Mapping[str, str]
    tags: tuple[TagMeasure, ...]

    def rated(self) -> tuple[RatedTag, ...]:
        """The tags, those that stand out first."""
        return rate_tags(self.tags)


def write_tags(folder: RunFolder, tags: TagList) -> None:
    """Keep the list in the run's folder; OutputError if it cannot be written."""
    write_json(folder.tags, asdict(tags))


def read_tags(folder: RunFolder) -> TagList | None:
    """The list of the run; None if none was written or it cannot be read."""
    try:
        found = json.loads(folder.tags.read_text(encoding="utf-8"))
        alone = {str(trigger): str(text) for trigger, text in found["alone"].items()}
        return TagList(int(found["epoch"]), str(found["lora"]), alone, tuple(map(tag_from_record, found["tags"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def tags_rated(tags: TagList) -> TagsRated:
    """What the run's log says about the list; of several triggers, each tag is named with its own."""
    rated, has_many = tags.rated(), len(tags.alone) > 1
    names = {one: f"{one.measure.trigger}: {one.measure.tag}" if has_many else one.measure.tag for one in rated}
    found = {names[one]: " ".join(filter(None, (one.sentence, one.advice))) for one in rated if one.stands_out}
    return TagsRated(tags.epoch, len(rated), dict(Counter(str(one.verdict) for one in rated)), found)


def tag_from_record(record: Mapping[str, Any]) -> TagMeasure:
    """The tag of a record; ValueError, KeyError or TypeError if it cannot be used."""
    values: dict[str, Any] = {name: str(record[name]) for name in ("trigger", "tag", "prompt")}
    values |= {name: int(record[name]) for name in ("images", "total")}
    if not 0 < values["images"] <= values["total"]:
        raise ValueError("not a count")
    values |= _values(record, _VALUES)
    return TagMeasure(
        **values, separation=_number(record["separation"]), pulls=tuple(_pull(one) for one in record["pulls"])
    )


def tag_values(tags: TagList) -> list[dict[str, Any]]:
    """The rated tags for JSON, those that stand out first; positions and effects as means, None if not drawn."""
    return [
        {
            "trigger": one.measure.trigger,
            "tag": one.measure.tag,
            "prompt": one.measure.prompt,
            "images": one.measure.images,
            "total": one.measure.total,
            "verdict": one.verdict,
            "steals": one.steals,
            "pulls": list(one.pulls),
            "stands_out": one.stands_out,
            "sentence": one.sentence,
            "advice": one.advice,
            "separation": one.measure.separation,
            **{name: _mean(getattr(one.measure, name)) for name in _VALUES},
        }
        for one in tags.rated()
    ]


def _pull(record: Mapping[str, Any]) -> TagPull:
    return TagPull(
        tag=str(record["tag"]),
        both=int(record["both"]),
        images=int(record["images"]),
        separation=_number(record["separation"]),
        **_values(record, _PULL_VALUES),
    )


def _values(record: Mapping[str, Any], names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    values = {name: tuple(map(_number, record[name])) for name in names}
    if len({len(one) for one in values.values()}) != 1:
        raise ValueError("not one value for each seed")
    return values


def _number(value: Any) -> float:
    if not math.isfinite(float(value)):
        raise ValueError("not a number")
    return float(value)


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
