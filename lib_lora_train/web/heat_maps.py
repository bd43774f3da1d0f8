"""Heat maps on the page and over HTTP: where in an image the words of its prompt act.

A request names an image by the token that the page has for it, or a program by its path. A sample or a cell of a grid
is drawn again with its prompt, seed and LoRA file, and recorded meanwhile, or looked at as it is in one pass; any other
image is looked at with its caption. The result is kept for a while, so that other words of it appear at once.
"""

from __future__ import annotations

import base64
import io
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.config.heat_map_layers import HEAT_MAP_LAYERS
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control, RunStoppedError
from lib_lora_train.core.errors import DataError, ModelUnavailableError
from lib_lora_train.core.generators import WithResult
from lib_lora_train.core.phases import PHASE_TITLES
from lib_lora_train.models.prompt_weights import split_words
from lib_lora_train.runs.records.past_runs import past_runs
from lib_lora_train.web.heat_map_requests import HeatMapRequests
from lib_lora_train.web.image_tokens import ImageTokens
from lib_lora_train.web.task_session import TaskSession

if TYPE_CHECKING:
    from PIL import Image

    from lib_lora_train.runs.images.heat_maps import HeatMapRequest, HeatMapResult
    from lib_lora_train.runs.runner import Runner

_KEPT_RESULTS = 32  # with the words of an image shown, arrow keys go through a grid: a few MB each
_RUNS_WITH_LORAS = 3  # whose files are offered for images of a dataset
_STOP_SECONDS = 20.0


class HeatMapSession(TaskSession):
    """Makes the heat maps of one image at a time, also while a training is running.

    `config` returns the settings of the saved draft, which images of a dataset are looked at with.
    """

    def __init__(
        self, runner: Runner, home: Path, image_tokens: ImageTokens, config: Callable[[], TrainConfig]
    ) -> None:
        super().__init__("heat map")
        self._runner = runner
        self._home = home
        self._requests = HeatMapRequests(runner.host, home, image_tokens, config)
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
        request = self._requests.read(values)
        loras = [request.lora, *([] if request.prompt else self._recent_loras())]
        return {
            "words": list(split_words(request.prompt_text, weighted=request.is_weighted)),
            "loras": [{"file": str(path), "name": path.stem} for path in dict.fromkeys(loras) if path],
            "lora": str(request.lora or ""),
            "strength": request.strength,
            "is_drawn": request.prompt is not None,
        }

    def start(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Look at the image, or draw it, unless that was done before; the status. What is under way is stopped."""
        from lib_lora_train.runs.images.heat_maps import require_one_model

        request = self._requests.read(values)
        if self._key(request) in self._results:
            return {**self.task.status(), "state": "done", "message": ""}
        require_one_model(self._runner.host, request.config, self._runner.active_run)
        self.task.stop()
        self.task.wait(_STOP_SECONDS)
        self.task.start(lambda: self._record(request))
        return self.status({})

    def show(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The maps of the words `texts` as images to lay over the image, which is returned too, as it was drawn.

        With `joined` it is one map of all these words. DataError before `start` has done its work, and for a word that
        is not in the prompt.
        """
        from lib_lora_train.sampling.overlay import heat_layer

        key = self._key(self._requests.read(values))
        result = self._results.get(key)
        if result is None:
            raise DataError("This image has no heat maps yet. Make them first.")
        self._results.move_to_end(key)
        chosen = str(values.get("layers") or HEAT_MAP_LAYERS[0])
        layers = next((one for one in HEAT_MAP_LAYERS if one == chosen), None)
        if layers is None:
            raise DataError(f"layers must be {' or '.join(HEAT_MAP_LAYERS)}, not {chosen!r}.")
        words = [str(word) for word in values.get("texts", ())]
        groups = [words] if words and values.get("joined") else [[word] for word in words]
        maps = [result.attention.joint_map(group, layers) for group in groups]
        return {
            "image": _data_url(result.image),
            "maps": [{"word": m.word, "peak": m.peak, "layer": _data_url(heat_layer(m.values))} for m in maps],
        }

    # --- the thread ------------------------------------------------------------------------------
    def _record(self, request: HeatMapRequest) -> None:
        """Make the maps under the host's lease, and keep them."""
        from lib_lora_train.runs.images.heat_maps import record_heat_maps
        from lib_lora_train.sampling.sample import SamplingStep

        control = Control()
        key, work = self._key(request), WithResult(record_heat_maps(request, self._runner.host, control))
        self.task.start_phase("Looking at the image" if request.image else PHASE_TITLES["load"], 0)
        try:
            for at in work:
                if isinstance(at, SamplingStep):
                    if at.step == 1:
                        self.task.start_phase("steps drawn", at.steps)
                    self.task.report(at.step)
                if self.task.is_stopped():
                    control.stop()
        except RunStoppedError:
            return
        except ModelUnavailableError:
            if self.task.is_stopped():
                return
            raise
        self._results[key] = work.result
        while len(self._results) > _KEPT_RESULTS:
            self._results.popitem(last=False)

    def _key(self, request: HeatMapRequest) -> Hashable:
        """The request with the model in use and the versions of its files."""
        files = (path for path in (request.image, request.lora) if path and path.is_file())
        return request, self._runner.host.run_target(request.config).checkpoint, *(f.stat().st_mtime_ns for f in files)

    def _recent_loras(self) -> list[Path]:
        """The newest LoRA files of the newest runs, newest run first."""
        found = []
        for number, run in enumerate(past_runs(self._home, self._runner.active_run)):
            if number == _RUNS_WITH_LORAS:
                break
            found += [Path(path) for path in reversed(run["loras"])]
        return found


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
