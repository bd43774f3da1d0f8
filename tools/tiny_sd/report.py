"""Images for the model card: loss curves from the training logs, and a captioned sheet."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw

INK, GRID, CURVES = (40, 40, 48), (226, 226, 230), ((44, 98, 224), (222, 44, 44), (56, 168, 74))

Curve = list[tuple[float, float]]


def read_curve(log: Path, pattern: str) -> Curve:
    """(x, y) of each line of ``log`` matching ``pattern``, which has two number groups."""
    matches = re.finditer(pattern, log.read_text(encoding="utf-8"))
    return [(float(match[1]), float(match[2])) for match in matches]


def draw_plot(title: str, curves: dict[str, Curve], *, width: int = 560, height: int = 240) -> Image.Image:
    """A line plot with a legend, linear axes and four grid lines."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    points = [point for curve in curves.values() for point in curve]
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y, high_y = min(y for _, y in points), max(y for _, y in points)
    span_x, span_y = (high_x - low_x) or 1.0, (high_y - low_y) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return 56 + (x - low_x) / span_x * (width - 76), height - 34 - (y - low_y) / span_y * (height - 70)

    for quarter in range(5):
        x, y = low_x + span_x * quarter / 4, low_y + span_y * quarter / 4
        draw.line([place(low_x, y), place(high_x, y)], fill=GRID)
        draw.text((6, place(low_x, y)[1] - 6), f"{y:.3g}", fill=INK)
        draw.text((place(x, low_y)[0] - 10, height - 26), f"{x:.0f}", fill=INK)
    draw.text((56, 8), title, fill=INK)
    for index, (name, curve) in enumerate(curves.items()):
        colour = CURVES[index % len(CURVES)]
        draw.line([place(x, y) for x, y in curve], fill=colour, width=2)
        draw.text((width - 150, 8 + 14 * index), name, fill=colour)
    return image


def stack_plots(plots: list[Image.Image]) -> Image.Image:
    """The plots below each other."""
    stacked = Image.new("RGB", (plots[0].width, sum(plot.height for plot in plots)), "white")
    top = 0
    for plot in plots:
        stacked.paste(plot, (0, top))
        top += plot.height
    return stacked


def draw_sheet(images: list[Image.Image], captions: list[str], *, columns: int = 8) -> Image.Image:
    """Images in a grid with their captions below."""
    cell_x, cell_y = 136, 166
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell_x, rows * cell_y), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = index % columns * cell_x + 4, index // columns * cell_y + 4
        sheet.paste(image, (left, top))
        draw.multiline_text((left, top + 130), "\n".join(textwrap.wrap(caption, 22)), fill=INK, spacing=1)
    return sheet
