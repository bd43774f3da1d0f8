"""The grids of past runs in the Results panel: drawing them, and showing their cells as they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.config.settings.samples import SAMPLERS
from lib_lora_train.core.errors import HostError
from lib_lora_train.core.wording import count
from lib_lora_train.runs.images.epoch_grid import GridSheet, read_choice, read_sheets
from lib_lora_train.runs.images.grid_generator import GridGenerator, grid_image
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.web.image_tokens import ImageTokens

if TYPE_CHECKING:
    from lib_lora_train.runs.runner import Runner


FolderOf = Callable[[Mapping[str, Any]], RunFolder]
"""The folder of the run that a request names; HostError if there is none."""


class GridSession:
    """Actions for the grids of the runs in `home`."""

    def __init__(self, runner: Runner, home: Path, image_tokens: ImageTokens, folder_of: FolderOf) -> None:
        self._host = runner.host
        self._folder_of = folder_of
        self._image_tokens = image_tokens
        self._generator = GridGenerator(runner.host, home, lambda: bool(runner.active_run))

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any] | None]]:
        """The actions that the page can request, by name."""
        return {
            "grid-draw": self.draw,
            "grid-cancel": self.cancel,
            "grid-list": self.list_grids,
            "grid-show": self.show,
        }

    def status(self) -> dict[str, Any]:
        """The progress of the grid that is being drawn, with a token for the whole image once it is."""
        status = self._generator.status()
        return {**status, "token": self._token(Path(status["path"])) if status["path"] else ""}

    def draw(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Draw the grid of a run ("": the newest one with LoRA files), and return its id; HostError if impossible."""
        choice = read_choice(values)
        if choice.run:
            self._folder_of(values)
        return {"run": self._generator.start(choice)}

    def cancel(self, _values: Mapping[str, Any]) -> None:
        """Stop the grid after the current sampling step."""
        self._generator.cancel()

    def list_grids(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The run's grids, newest first, and the samplers that can draw another one."""
        folder = self._folder_of(values)
        sheets = read_sheets(folder)
        return {
            "samplers": self._host.sampler_names() or SAMPLERS,
            "grids": [
                {"id": sheet.id, "title": sheet.title, "started": sheet.started, "label": _label(sheet)}
                for sheet in sheets
            ],
        }

    def show(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The rows and columns of a grid, with a token for each cell that is drawn, null for the others."""
        folder = self._folder_of(values)
        sheet = next((one for one in read_sheets(folder) if one.id == values["id"]), None)
        if sheet is None:
            raise HostError("This grid no longer exists. Reload the page.")
        rows = [
            {
                "label": row.label,
                "lora": row.lora,
                "strength": row.strength,
                "cells": [self._cell_token(folder, name) for name in row.cells],
            }
            for row in sheet.rows
        ]
        columns = [
            {"prompt": column.prompt, "seed": column.seed, "is_control": column.is_control} for column in sheet.columns
        ]
        whole = grid_image(folder, sheet)
        return {
            "id": sheet.id,
            "title": sheet.title,
            "columns": columns,
            "rows": rows,
            "path": str(whole) if whole.is_file() else "",
        }

    def _cell_token(self, folder: RunFolder, name: str) -> str | None:
        path = folder.epoch_grids / name
        return self._token(path) if path.suffix == ".png" and path.is_file() else None

    def _token(self, path: Path) -> str:
        return self._image_tokens.publish([path])[0]


def _label(sheet: GridSheet) -> str:
    """`6 rows × 4 prompts, strength 0.6, 1, Euler a`."""
    strengths = sorted({row.strength for row in sheet.rows if row.lora})
    return (
        f"{count(len(sheet.rows), 'row')} × {count(len(sheet.columns), 'prompt')}, strength "
        f"{', '.join(f'{one:g}' for one in strengths)}, {sheet.sampler}"
    )
