"""What has changed in the images and captions since a run was interrupted, by file name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lib_lora_train.dataset.plan import Plan

Images = Mapping[str, Sequence[str]]
"""By `folder/file`: short hashes of the pixels, the captions and the mask, and the repeats."""

_PARTS = ("the image itself", "its caption", "its mask", "its repeats")
_SHOWN = 5


def plan_images(plan: Plan) -> dict[str, list[str]]:
    """The images of a run, to find out later which of them have changed."""
    images: dict[str, list[str]] = {}
    for number, item in enumerate(plan.dataset.items):
        concept = plan.dataset.concepts[item.concept]
        captions = _short([item.caption, *item.lines])
        mask = item.mask.content_hash[:16] if item.mask else ""
        name = _unused(images, f"{concept.folder.name}/{item.image.path.name}")
        images[name] = [item.image.content_hash[:16], captions, mask, str(plan.repeats[number])]
    return images


def describe_changes(before: Images, plan: Plan) -> str:
    """`zorp/01.png: its caption has changed; zorp/02.png is missing`; "" if no image differs or none is known."""
    now = plan_images(plan)
    changes = list(_changes(before, now)) if before else []
    more = f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    return "; ".join(changes[:_SHOWN]) + more


def _changes(before: Images, now: Images) -> Iterator[str]:
    for name, was in before.items():
        if name not in now:
            yield f"{name} is missing"
            continue
        parts = [part for part, a, b in zip(_PARTS, was, now[name], strict=False) if a != b]
        if parts:
            yield f"{name}: {' and '.join(parts)} changed"
    yield from (f"{name} is new" for name in now if name not in before)


def _short(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _unused(images: Images, name: str) -> str:
    """The name, or `name (2)`…: two folders of one name may each have the file."""
    names = (name, *(f"{name} ({number})" for number in range(2, len(images) + 2)))
    return next(one for one in names if one not in images)
