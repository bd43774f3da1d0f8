"""The images of a run with their losses, as they are kept in its folder, and rated. Does not import PyTorch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from lib_lora_train.core.events import ImagesRated
from lib_lora_train.core.wording import count
from lib_lora_train.evaluation.image_excess import STANDS_OUT, ImageLoss, RatedImage, describe_image, rate_images
from lib_lora_train.runs.records.folder import RunFolder, write_json
from lib_lora_train.runs.records.moved_run import read_move

_NAMED = 3


@dataclass(frozen=True)
class ImageList:
    """What was measured of the images of a run after an epoch (0: with a file that belongs to none), by path.

    `captions` are those that were trained.
    """

    epoch: int
    images: tuple[ImageLoss, ...]
    captions: Mapping[str, str]

    def rated(self) -> tuple[RatedImage, ...]:
        """The images, those that stand out most first."""
        return rate_images(self.images)


def write_images(folder: RunFolder, images: ImageList) -> None:
    """Keep the list in the run's folder; OutputError if it cannot be written."""
    write_json(
        folder.image_losses,
        {
            "epoch": images.epoch,
            "images": [{**asdict(image), "caption": images.captions[image.path]} for image in images.images],
        },
    )


def read_images(folder: RunFolder) -> ImageList | None:
    """The list of the run, with images found again after a move; None if none was written or it cannot be read."""
    try:
        found = json.loads(folder.image_losses.read_text(encoding="utf-8"))
        images = tuple(map(image_from_record, found["images"]))
        captions = {one["path"]: str(one["caption"]) for one in found["images"]}
        return _moved(ImageList(int(found["epoch"]), images, captions), folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def images_rated(images: ImageList) -> ImagesRated:
    """What the run's log says about the list."""
    found = {one.image.path: describe_image(one) for one in images.rated() if one.score >= STANDS_OUT}
    return ImagesRated(images.epoch, len(images.images), found)


def describe_first(images: ImageList) -> str:
    """A sentence that names the images that stand out, "" if none does."""
    names = [Path(one.image.path).name for one in images.rated() if one.score >= STANDS_OUT]
    if not names:
        return ""
    named = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    return (
        f"{count(len(names), 'image stands', 'images stand')} out by the loss: {named}. See Images by loss in Results."
    )


def image_values(images: ImageList) -> list[dict[str, Any]]:
    """The rated images for JSON, those that stand out most first."""
    return [
        {
            "path": one.image.path,
            "folder": one.image.group,
            "caption": images.captions[one.image.path],
            "loss": one.image.loss,
            "untrained": fmean(one.image.untrained),
            "uncaptioned": fmean(one.image.uncaptioned),
            "expected": one.expected,
            "excess": one.excess,
            "score": one.score,
            "stands_out": one.score >= STANDS_OUT,
            "reason": one.reason,
            "sentence": describe_image(one),
            "nearest": [{"path": path, "likeness": alike} for path, alike in one.image.nearest],
        }
        for one in images.rated()
    ]


def image_from_record(record: Mapping[str, Any]) -> ImageLoss:
    """The image of a record; ValueError, KeyError or TypeError if it cannot be used."""
    losses = {name: tuple(map(float, record[name])) for name in ("trained", "untrained", "uncaptioned")}
    lengths = {len(values) for values in losses.values()}
    if (
        len(lengths) != 1
        or 0 in lengths
        or not all(0 < loss < math.inf for values in losses.values() for loss in values)
    ):
        raise ValueError("not a loss")
    nearest = tuple((str(path), float(alike)) for path, alike in record["nearest"])
    return ImageLoss(str(record["path"]), str(record["group"]), **losses, nearest=nearest)


def _moved(images: ImageList, folder: RunFolder) -> ImageList:
    move = read_move(folder)
    places = {image.path: str(move.find(image.path)) for image in images.images}

    def found(image: ImageLoss) -> ImageLoss:
        nearest = tuple((places.get(path, path), alike) for path, alike in image.nearest)
        return replace(image, path=places[image.path], nearest=nearest)

    captions = {places[path]: caption for path, caption in images.captions.items()}
    return ImageList(images.epoch, tuple(map(found, images.images)), captions)
