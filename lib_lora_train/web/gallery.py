"""The images of the dataset that was looked at, a page at a time. No gradio here."""

from __future__ import annotations

import math
from typing import Any

from lib_lora_train.web.form_check import ScannedDataset
from lib_lora_train.web.image_tokens import ImageTokens

IMAGES_PER_PAGE = 48


def image_page(looked: ScannedDataset | None, shelf: ImageTokens, page: int) -> dict[str, Any]:
    """One page with a token, the caption and facts per image; beyond the ends is the nearest page."""
    if looked is None:
        return {"number": 0, "page": 0, "pages": 0, "total": 0, "images": []}
    items, concepts = looked.dataset.items, looked.dataset.concepts
    pages = max(1, math.ceil(len(items) / IMAGES_PER_PAGE))
    page = min(max(0, page), pages - 1)
    shown = items[page * IMAGES_PER_PAGE : (page + 1) * IMAGES_PER_PAGE]
    tokens = shelf.publish(item.image.path for item in shown)
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
    return {"number": looked.number, "page": page, "pages": pages, "total": len(items), "images": images}
