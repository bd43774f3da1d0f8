"""Heat maps on the page and over HTTP: where in an image the words of its prompt act.

A request names an image by the token that the page has for it, or a program by its path. A sample of a run is drawn
again with its prompt, seed and LoRA file, and recorded meanwhile; any other image is looked at in one pass with its
caption. The result is kept for a while, so that other words of it appear at once.
"""

from __future__ import annotations

import base64
import io
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.config.settings.samples import SAMPLERS
from lib_lora_train.config.train_config import TrainConfig, read_config
from lib_lora_train.core.background_task import BackgroundTask
from lib_lora_train.core.control import Control, RunStoppedError
from lib_lora_train.core.errors import DataError, ModelUnavailableError
from lib_lora_train.dataset.captions import find_caption_file, index_by_extension, read_caption_file
from lib_lora_train.formats.toml import read_toml_config
from lib_lora_train.models.prompt_weights import split_words
from lib_lora_train.runs.event_log import read_log
from lib_lora_train.runs.folder import RunFolder
from lib_lora_train.runs.history import read_loras
from lib_lora_train.runs.moved_run import read_move
from lib_lora_train.runs.past_runs import past_runs
from lib_lora_train.sampling.infotext import read_sample_settings
from lib_lora_train.web.image_tokens import ImageTokens
from lib_lora_train.web.json_values import optional_path

if TYPE_CHECKING:
    from PIL import Image

    from lib_lora_train.runs.heat_maps import HeatMapRequest, HeatMapResult
    from lib_lora_train.runs.runner import Runner

_KEPT_RESULTS = 8
_RUNS_WITH_LORAS = 3  # whose files are offered for images of a dataset
_STOP_SECONDS = 20.0
_LAYERS = ("objects", "all")


class HeatMapSession:
    """Makes the heat maps of one image at a time, also while a training is running.

    `config` returns the settings of the saved draft, which images of a dataset are looked at with.
    """

    def __init__(
        self, runner: Runner, home: Path, image_tokens: ImageTokens, config: Callable[[], TrainConfig]
    ) -> None:
        self._runner = runner
        self._home = home
        self._image_tokens = image_tokens
        self._config = config
        self.task = BackgroundTask("heat map")
        self._results: OrderedDict[Hashable, HeatMapResult] = OrderedDict()

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """The actions that the page can request, by name."""
        return {
            "heatmap-open": self.open,
            "heatmap-start": self.start,
            "heatmap-status": self.status,
            "heatmap-stop": self.stop,
            "heatmap-show": self.show,
        }

    def open(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The words of an image's prompt, the LoRA files to choose from, and the one that it was drawn with."""
        request = self._request(values)
        loras = [request.lora, *([] if request.prompt else self._recent_loras())]
        return {
            "words": list(split_words(request.prompt_text, weighted=request.is_weighted)),
            "loras": [{"file": str(path), "name": path.stem} for path in dict.fromkeys(loras) if path],
            "lora": str(request.lora or ""),
            "is_drawn": request.prompt is not None,
        }

    def start(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Look at the image, or draw it, unless that was done before; the status. What is under way is stopped."""
        from lib_lora_train.runs.heat_maps import require_one_model

        request = self._request(values)
        if self._key(request) in self._results:
            return {**self.task.status(), "state": "done", "message": ""}
        require_one_model(self._runner.host, request.config, self._runner.active_run)
        self.task.stop()
        self.task.wait(_STOP_SECONDS)
        self.task.start(lambda: self._record(request))
        return self.task.status()

    def status(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """The progress."""
        return self.task.status()

    def stop(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """Stop after the current sampling step; the status."""
        self.task.stop()
        return self.task.status()

    def show(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The maps of the words `texts` as images to lay over the image, which is returned too, as it was drawn.

        DataError before `start` has done its work, and for a word that is not in the prompt.
        """
        from lib_lora_train.sampling.overlay import heat_layer

        result = self._results.get(self._key(self._request(values)))
        if result is None:
            raise DataError("The heat maps of this image are not made yet. Make them first.")
        layers = str(values.get("layers") or _LAYERS[0])
        if layers not in _LAYERS:
            raise DataError(f"layers must be {' or '.join(_LAYERS)}, not {layers!r}.")
        maps = [result.attention.heat_map(str(word), layers) for word in values.get("texts", ())]  # type: ignore[arg-type]
        return {
            "image": _data_url(result.image),
            "maps": [{"word": m.word, "peak": m.peak, "layer": _data_url(heat_layer(m.values))} for m in maps],
        }

    # --- the thread ------------------------------------------------------------------------------
    def _record(self, request: HeatMapRequest) -> None:
        """Make the maps under the host's lease, and keep them."""
        from lib_lora_train.runs.heat_maps import record_heat_maps
        from lib_lora_train.sampling.sample import SamplingStep

        control = Control()
        key, work = self._key(request), record_heat_maps(request, self._runner.host, control)
        self.task.start_phase("Loading the model", 0)
        try:
            while True:
                at = next(work)
                if isinstance(at, SamplingStep):
                    if at.step == 1:
                        self.task.start_phase("steps drawn", at.steps)
                    self.task.report(at.step)
                if self.task.is_stopped():
                    control.stop()
        except StopIteration as end:
            self._results[key] = end.value
            while len(self._results) > _KEPT_RESULTS:
                self._results.popitem(last=False)
        except RunStoppedError:
            pass
        except ModelUnavailableError:
            if not self.task.is_stopped():
                raise

    def _key(self, request: HeatMapRequest) -> Hashable:
        """The request with the model in use and the versions of its files."""
        files = (path for path in (request.image, request.lora) if path and path.is_file())
        return request, self._runner.host.run_target(request.config).checkpoint, *(f.stat().st_mtime_ns for f in files)

    # --- what a request refers to ----------------------------------------------------------------
    def _request(self, values: Mapping[str, Any]) -> HeatMapRequest:
        """The image of the request, with the LoRA file that it names, "" for none; DataError if it is gone."""
        path = self._image_tokens.path_of(str(values.get("token") or "")) or optional_path(values, "path")
        if path is None or not path.is_file():
            raise DataError("This image is no longer there. Reload the page.")
        request = self._sample_request(path) or self._image_request(path, values)
        return replace(request, lora=optional_path(values, "file")) if "file" in values else request

    def _sample_request(self, path: Path) -> HeatMapRequest | None:
        """How a sample of a run was drawn; None for another image, and for one that the webui's sampler drew."""
        from lib_lora_train.runs.heat_maps import HeatMapRequest

        folder = RunFolder(path.parent.parent)
        if path.parent != folder.samples or folder.root.parent != self._home or not folder.log.is_file():
            return None
        move = read_move(folder)
        records = [r for r in map(move.record, read_log(folder.log)) if r["kind"] == "SampleDrawn"]
        drawn = next((r for r in reversed(records) if Path(r["path"]) == path), None)
        if drawn is None:
            return None
        config = move.config(read_config(read_toml_config(folder.config, is_ours=True))[0])
        lora, settings = _lora_of(folder, drawn), read_sample_settings(path)
        if settings is None or settings[1] not in SAMPLERS or config.webui_sampler:
            return HeatMapRequest(config, text=drawn["prompt"], image=path, lora=lora, has_weights=True)
        prompt = replace(settings[0], prompt=drawn["prompt"], seed=drawn["seed"])
        return HeatMapRequest(config.replace(sample_sampler=settings[1]), prompt=prompt, lora=lora)

    def _image_request(self, path: Path, values: Mapping[str, Any]) -> HeatMapRequest:
        """An image of a dataset with its caption: what the request says, else what its file says."""
        from lib_lora_train.runs.heat_maps import HeatMapRequest

        config = self._config()
        text = values.get("text")
        if text is None:
            file = find_caption_file(path, config.caption_extension, index_by_extension(path.parent.iterdir()))
            text = read_caption_file(file)[0].joined if file else ""
        return HeatMapRequest(config, text=str(text).strip(), image=path)

    def _recent_loras(self) -> list[Path]:
        """The newest LoRA files of the newest runs, newest run first."""
        found = []
        for number, run in enumerate(past_runs(self._home, self._runner.active_run)):
            if number == _RUNS_WITH_LORAS:
                break
            found += [Path(path) for path in reversed(run["loras"])]
        return found


def _lora_of(folder: RunFolder, drawn: Mapping[str, Any]) -> Path | None:
    """The LoRA file of a sample's moment; None without LoRA, and if the file is missing."""
    epoch, step = drawn["epoch"], drawn.get("step", 0)
    for file in read_loras(folder):
        is_same = (file.step == step and not file.epoch) if step else (epoch and file.epoch == epoch)
        if is_same and not file.is_missing:
            return file.path
    return None


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
