"""What a request for heat maps refers to: an image of a run with what it was drawn from, or one of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.config.settings.samples import SAMPLERS
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset.captions import find_caption_file, index_by_extension, read_caption_file
from lib_lora_train.runs.records.event_log import read_log
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.history import read_loras
from lib_lora_train.runs.records.moved_run import Move, read_move
from lib_lora_train.runs.records.past_config import read_past_config
from lib_lora_train.sampling.infotext import read_lora, read_sample_settings
from lib_lora_train.web.image_tokens import ImageTokens
from lib_lora_train.web.json_values import optional_path

if TYPE_CHECKING:
    from lib_lora_train.hosts.host import Host
    from lib_lora_train.runs.images.heat_maps import HeatMapRequest


@dataclass(frozen=True)
class _Drawn:
    """What an image of a run was drawn from: prompt and sampler, and the LoRA file at a strength, None for none."""

    prompt: SamplePrompt | None
    text: str
    sampler: str
    lora: Path | None
    strength: float


@dataclass(frozen=True)
class HeatMapRequests:
    """Reads requests. `config` returns the settings that images of a dataset are looked at with."""

    host: Host
    home: Path
    image_tokens: ImageTokens
    config: Callable[[], TrainConfig]

    def read(self, values: Mapping[str, Any]) -> HeatMapRequest:
        """The image with what it was drawn from; DataError if it is gone.

        `file` and `strength` replace its LoRA, "" for none. With `as_it_is`, it is looked at in one pass in place of
        being drawn again.
        """
        path = self.image_tokens.path_of(str(values.get("token") or "")) or optional_path(values, "path")
        if path is None or not path.is_file():
            raise DataError("This image is no longer there. Reload the page.")
        request = self._run_image(path, as_it_is=bool(values.get("as_it_is"))) or self._dataset_image(path, values)
        if "file" not in values:
            return request
        lora = optional_path(values, "file")
        strength = float(values.get("strength", request.strength if lora == request.lora else 1.0))
        return replace(request, lora=lora, strength=strength)

    def _run_image(self, path: Path, *, as_it_is: bool) -> HeatMapRequest | None:
        """An image that a run has drawn; None for another one."""
        from lib_lora_train.runs.images.heat_maps import HeatMapRequest

        root = next((parent for parent in path.parents if parent.parent == self.home), None)
        folder = RunFolder(root) if root else None
        if folder is None or not folder.log.is_file():
            return None
        move = read_move(folder)
        drawn = _read_sample(folder, move, path) if path.parent == folder.samples else _read_drawn(folder, path)
        if drawn is None:
            return None
        config = read_past_config(folder)
        is_ours = drawn.sampler in SAMPLERS and not (config.webui_sampler or self.host.sampler_names())
        if drawn.prompt and is_ours and not as_it_is:
            config = config.replace(sample_sampler=drawn.sampler)
            return HeatMapRequest(config, prompt=drawn.prompt, lora=drawn.lora, strength=drawn.strength)
        return HeatMapRequest(
            config, text=drawn.text, image=path, lora=drawn.lora, strength=drawn.strength, has_weights=True
        )

    def _dataset_image(self, path: Path, values: Mapping[str, Any]) -> HeatMapRequest:
        """An image of a dataset with its caption: what the request says, else what its file says."""
        from lib_lora_train.runs.images.heat_maps import HeatMapRequest

        config = self.config()
        text = values.get("text")
        if text is None:
            file = find_caption_file(path, config.caption_extension, index_by_extension(path.parent.iterdir()))
            text = read_caption_file(file)[0].joined if file else ""
        return HeatMapRequest(config, text=str(text).strip(), image=path)


def _read_sample(folder: RunFolder, move: Move, path: Path) -> _Drawn | None:
    """What a sample was drawn from, by the run's log; None if the log does not have it."""
    records = [record for record in map(move.record, read_log(folder.log)) if record["kind"] == "SampleDrawn"]
    found = next((record for record in reversed(records) if Path(record["path"]) == path), None)
    if found is None:
        return None
    lora, (prompt, sampler) = _lora_of(folder, found), read_sample_settings(path) or (None, "")
    if prompt:
        prompt = replace(prompt, prompt=found["prompt"], seed=found["seed"])
    return _Drawn(prompt, found["prompt"], sampler, lora, 1.0)


def _read_drawn(folder: RunFolder, path: Path) -> _Drawn | None:
    """What a cell of a grid or another image of the run was drawn from, by its infotext; None without one."""
    settings = read_sample_settings(path)
    if settings is None:
        return None
    name, strength = read_lora(path)
    files = (file.path for file in read_loras(folder) if name and not file.is_missing and file.path.stem == name)
    return _Drawn(settings[0], settings[0].prompt, settings[1], next(files, None), strength)


def _lora_of(folder: RunFolder, drawn: Mapping[str, Any]) -> Path | None:
    """The LoRA file of a sample's moment; None without LoRA, and if the file is missing."""
    epoch, step = drawn["epoch"], drawn.get("step", 0)
    for file in read_loras(folder):
        is_same = (file.step == step and not file.epoch) if step else (epoch and file.epoch == epoch)
        if is_same and not file.is_missing:
            return file.path
    return None
