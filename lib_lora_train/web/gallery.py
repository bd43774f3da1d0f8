"""The images of the scanned dataset, one page at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

from lib_lora_train.web.form_check import ScannedDataset
from lib_lora_train.web.image_tokens import ImageTokens

IMAGES_PER_PAGE = 48

_Item = TypeVar("_Item")


def paginate(items: Sequence[_Item], page: int) -> tuple[Sequence[_Item], int, int]:
    """The items of the page nearest to `page` (from 0), its number, and the number of pages (at least 1)."""
    pages = max(1, math.ceil(len(items) / IMAGES_PER_PAGE))
    page = min(max(0, page), pages - 1)
    return items[page * IMAGES_PER_PAGE : (page + 1) * IMAGES_PER_PAGE], page, pages


def image_page(scanned: ScannedDataset | None, image_tokens: ImageTokens, page: int) -> dict[str, Any]:
    """The page nearest to number `page`: token, caption, size and repeats of each image."""
    if scanned is None:
        return {"number": 0, "page": 0, "pages": 0, "total": 0, "images": []}
    items, concepts = scanned.dataset.items, scanned.dataset.concepts
    shown, page, pages = paginate(items, page)
    tokens = image_tokens.publish(item.image.path for item in shown)
    images = [
        {
            "token": token,
            "name": item.image.path.name,
            "caption": item.caption,
            "width": item.image.width,
            "height": item.image.height,
            "repeats": concepts[item.concept].repeats,
            "is_regularisation": concepts[item.concept].is_regularisation,
        }
        for token, item in zip(tokens, shown, strict=True)
    ]
    return {"number": scanned.number, "page": page, "pages": pages, "total": len(items), "images": images}
