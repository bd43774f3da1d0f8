"""Whether a LoRA fits the loaded model, and how a run sampled it: asked before it goes into the prompt of txt2img."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lib_lora_train.config.architecture_titles import TITLES
from lib_lora_train.config.sample_prompts import sample_prompts
from lib_lora_train.core.errors import HostError, LoraTrainError, ModelError
from lib_lora_train.hosts.host import other_lora
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.history import read_loras
from lib_lora_train.runs.records.past_config import past_named_word, read_past_config
from lib_lora_train.sampling.infotext import sample_settings
from lib_lora_train.sampling.used_sampler import used_sampler


class LoraUse:
    """`home` holds the runs; `loaded` returns the host's checkpoint, None if there is none.

    `lora_file` returns the file that the host reads under a name, None if that is unknown.
    """

    def __init__(self, home: Path, loaded: Callable[[], Path | None], lora_file: Callable[[str], Path | None]) -> None:
        self._home = home
        self._loaded = loaded
        self._lora_file = lora_file

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """The actions that the page can request, by name."""
        return {"lora-use": self.use}

    def use(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Why a run's LoRA file would not be read or cannot fit the loaded model, and the settings of its samples.

        `misfit` is "" if all is well. `word` is what the file's name replaces in prompts, "" for a LoRA. HostError if
        the file is not one of the run's, or is missing.
        """
        folder, path = RunFolder(self._home / Path(str(values["run"])).name), str(values["path"])
        found = next((file for file in read_loras(folder) if str(file.path) == path), None)
        if found is None or found.is_missing:
            raise HostError(f"{Path(path).name} is missing: it was moved, renamed or deleted. Reload the page.")
        loaded, word = self._loaded(), past_named_word(folder)
        misfit = "" if word else other_lora(self._lora_file(found.path.stem), found.path)
        if loaded and not misfit:
            misfit = find_misfit(found.path, loaded)
        return {"misfit": misfit, "settings": _settings(folder), "word": word}


def find_misfit(lora: Path, checkpoint: Path) -> str:
    """A sentence if the LoRA is for another kind of model than the checkpoint is; "" if it fits or that is unknown."""
    from lib_lora_train.lora_tools.check import read_base_model  # loads PyTorch
    from lib_lora_train.models.model_files import read_checkpoint_info

    try:
        loaded = TITLES[read_checkpoint_info(checkpoint).spec.architecture]
        made_for = read_base_model(lora)
    except (LoraTrainError, ModelError):  # the webui may read files that cannot be trained on
        return ""
    kinds = made_for.partition(" (")[0].split(" or ")
    if not made_for or loaded in kinds:
        return ""
    return (
        f"{lora.stem} is for {made_for}, but the webui has {checkpoint.stem} loaded, which is {loaded}: it would do "
        f"nothing or fail. Select a checkpoint of its kind first."
    )


def _settings(folder: RunFolder) -> str:
    """Size, steps, CFG, sampler and clip skip of the run's samples in A1111's notation; "" if they cannot be read."""
    try:
        config = read_past_config(folder)
        first = (sample_prompts(config) or sample_prompts(config.replace(sample_prompts=("",))))[0]
    except LoraTrainError:
        return ""
    sampler = used_sampler(config.effective_sampler, config.prediction_type)
    return sample_settings(first, sampler=sampler, clip_skip=config.clip_skip)
