"""The epochs × prompts grid: one image that shows which epoch is best.

Columns are prompts, rows are epochs. The first row is without LoRA, so that what was learnt, and what else has changed,
shows at a glance. Control prompts, which must not change, are a block to the right of the others.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_TEXT_COLOUR = (32, 34, 40)
_NOTE_COLOUR = (112, 118, 130)
_BACKGROUND = (255, 255, 255)
_GAP = 8
_BLOCK_GAP = 32
CONCEPT_TITLE, CONTROL_TITLE = "should change", "control: should not change"
_LINE_HEIGHT = 1.3  # × font size


@dataclass(frozen=True)
class GridRow:
    """One row: its label, a note below it ("" for none), and one image per column."""

    label: str
    note: str
    images: Sequence[Image.Image]


def compose_grid(
    columns: Sequence[str], rows: Sequence[GridRow], *, title: str = "", control: Collection[int] = ()
) -> Image.Image:
    """The grid as an RGB image; no image is scaled. `control` are the places (from 0) of the control prompts.

    Raises ValueError unless every row has one image per column.
    """
    if not columns or not rows or any(len(row.images) != len(columns) for row in rows):
        raise ValueError("a grid needs at least one row and one column, and an image in every cell")
    order = sorted(range(len(columns)), key=lambda place: place in control)
    columns = [columns[place] for place in order]
    rows = [GridRow(row.label, row.note, [row.images[place] for place in order]) for row in rows]
    blocks = _blocks(len(columns), sum(place in control for place in order))
    widths = [max(row.images[c].width for row in rows) for c in range(len(columns))]
    heights = [max(image.height for image in row.images) for row in rows]
    size = max(11, min(28, min(widths) // 10))
    font = _font(size)
    rows = [GridRow(_drawable(font, row.label), _drawable(font, row.note), row.images) for row in rows]
    headings = [_wrap(font, text, width) for text, width in zip(columns, widths, strict=True)]
    title_height = int(size * 2) if title else _GAP
    block_height = int(size * 1.6) if blocks else 0
    top = title_height + block_height + int(max(h.count("\n") + 1 for h in headings) * size * _LINE_HEIGHT) + _GAP
    lefts = _starts(_label_width(font, rows) + 2 * _GAP, widths, gaps=_gaps(len(columns), blocks))
    tops = _starts(top, heights, gaps=[_GAP] * len(rows))
    canvas = Image.new("RGB", (lefts[-1] + widths[-1] + _GAP, tops[-1] + heights[-1] + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((_GAP, _GAP // 2), _drawable(font, title), fill=_TEXT_COLOUR, font=_font(int(size * 1.2)))
    for column, text in blocks.items():
        draw.text((lefts[column], title_height), text, fill=_NOTE_COLOUR, font=font)
    _draw_headings(draw, font, headings, lefts=lefts, top=title_height + block_height)
    for row, y, height in zip(rows, tops, heights, strict=True):
        _draw_label(draw, font, row, y + height // 2)
        for image, x in zip(row.images, lefts, strict=True):
            canvas.paste(image.convert("RGB"), (x, y))
    return canvas


def _blocks(columns: int, control: int) -> dict[int, str]:
    """The titles of the blocks by their first columns; none without control prompts."""
    if not control:
        return {}
    return {0: CONCEPT_TITLE, columns - control: CONTROL_TITLE} if control < columns else {0: CONTROL_TITLE}


def _gaps(columns: int, blocks: Collection[int]) -> list[int]:
    """The space after each column: wider where a block ends."""
    return [_BLOCK_GAP if column + 1 in blocks else _GAP for column in range(columns)]


def _starts(first: int, sizes: Sequence[int], gaps: Sequence[int]) -> list[int]:
    return list(accumulate((size + gap for size, gap in zip(sizes, gaps, strict=True)), initial=first))[:-1]


def _draw_headings(draw: Any, font: Any, headings: Sequence[str], *, lefts: Sequence[int], top: int) -> None:
    for text, x in zip(headings, lefts, strict=True):
        draw.multiline_text((x, top), text, fill=_TEXT_COLOUR, font=font, spacing=2)


def _draw_label(draw: Any, font: Any, row: GridRow, middle: int) -> None:
    line = font.getbbox("Ag")[3] * _LINE_HEIGHT
    start = middle - line * (2 if row.note else 1) / 2
    draw.text((_GAP, start), row.label, fill=_TEXT_COLOUR, font=font)
    draw.text((_GAP, start + line), row.note, fill=_NOTE_COLOUR, font=font)


def _label_width(font: Any, rows: Sequence[GridRow]) -> int:
    return int(max(font.getlength(text) for row in rows for text in (row.label, row.note)))


def _wrap(font: Any, text: str, width: int) -> str:
    """`text` wrapped to at most three lines of `width` pixels, then cut with an ellipsis."""
    length = max(4, int(width / max(1.0, font.getlength("n"))))
    lines = textwrap.wrap(text, length, max_lines=3, placeholder=" …")
    return _drawable(font, "\n".join(lines) or " ")


def _drawable(font: Any, text: str) -> str:
    """The text in characters that the font has: Pillow's old bitmap font fails outside Latin-1."""
    if not isinstance(font, ImageFont.ImageFont):
        return text
    return text.replace("…", "...").encode("latin-1", "replace").decode("latin-1")


def _font(size: int) -> Any:
    """Pillow's built-in font; before Pillow 10.1 (A1111 has 9.5) in one size only."""
    try:
        return ImageFont.load_default(size)
    except TypeError:
        return ImageFont.load_default()


def epoch_rows(images: Mapping[int, Sequence[Image.Image]], notes: Mapping[int, str]) -> list[GridRow]:
    """Rows in order of epoch; epoch 0 is without LoRA."""
    return [
        GridRow("no LoRA" if epoch == 0 else f"epoch {epoch}", notes.get(epoch, ""), images[epoch])
        for epoch in sorted(images)
    ]
