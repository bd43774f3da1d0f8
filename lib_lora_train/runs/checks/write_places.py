"""Every folder that a run will write to, tried before minutes are spent on loading and encoding.

Does not import PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.config.method_catalog import METHOD_CATALOG
from lib_lora_train.config.sample_prompts import writes_own_prompts
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import Problem
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.core.writable import scan_write_obstacle
from lib_lora_train.hosts.host import Host
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.tensorboard import tensorboard_folder


@dataclass(frozen=True)
class WritePlaces:
    """`home` gets the run folder and the caches, `lora_dir` the LoRA files if the settings name no other folder.

    `embedding_dir` is that of embeddings, None if it is `lora_dir`. `folder` is the run's own if it exists already.
    """

    home: Path
    lora_dir: Path
    folder: RunFolder | None = None
    embedding_dir: Path | None = None

    def file_dir(self, config: TrainConfig) -> Path:
        """Where the files of a run go that names no other folder."""
        is_embedding = METHOD_CATALOG[config.method].is_named_in_prompts
        return self.embedding_dir if is_embedding and self.embedding_dir else self.lora_dir


def saving_places(
    home: Path, host: Host, *, folder: RunFolder | None = None, file_dir: Path | None = None
) -> WritePlaces:
    """The places of runs in `home`; `file_dir` is for the files of any method, None for the host's folders."""
    return WritePlaces(home, file_dir or host.lora_dir, folder, file_dir or host.embedding_dir)


def place_problems(config: TrainConfig, places: WritePlaces) -> list[Problem]:
    """Why something could not be saved; an error for what a run needs, a warning for what it can do without."""
    return [*output_dir_problems(config), *_problems(config, places)]


def output_dir_problems(config: TrainConfig) -> list[Problem]:
    """Why the LoRA files could not be saved in the folder of the settings."""
    obstacle = scan_write_obstacle(user_path(config.output_dir).absolute()) if config.output_dir else ""
    text = f"{config.output_dir} cannot be used: {obstacle}. Choose another folder."
    return [Problem("error", "output_dir", text)] if obstacle else []


def _problems(config: TrainConfig, places: WritePlaces) -> Iterator[Problem]:
    if not config.output_dir and (obstacle := scan_write_obstacle(places.file_dir(config).absolute())):
        text = f"the LoRA files would be saved in {places.file_dir(config)}, but {obstacle}. Choose another folder."
        yield Problem("error", "output_dir", text)
    folder = places.folder.root if places.folder else places.home
    if obstacle := scan_write_obstacle(folder.absolute()):
        text = (
            f"{folder}, for settings, log, samples and training states, cannot be used: {obstacle}. Make it writable."
        )
        yield Problem("error", "", text)
        return
    if places.folder and config.save_state and (obstacle := scan_write_obstacle(places.folder.states.absolute())):
        text = f"training states cannot be saved: {obstacle}. Make it writable, or the run cannot be resumed."
        yield Problem("warning", "save_state", text)
    has_samples = bool(config.sample_prompts) or writes_own_prompts(config)
    if places.folder and has_samples and (obstacle := scan_write_obstacle(places.folder.samples.absolute())):
        yield Problem("warning", "sample_prompts", f"samples cannot be saved: {obstacle}. Make it writable.")
    yield from _side_products(config, places.home)


def _side_products(config: TrainConfig, home: Path) -> Iterator[Problem]:
    """What a run can continue without: caches and TensorBoard's logs."""
    caches = ("latents", "text") if config.cache_to_disk else ()
    obstacles = (scan_write_obstacle((home / cache).absolute()) for cache in caches)
    if obstacle := next(filter(None, obstacles), ""):
        text = f"the cache cannot be saved: {obstacle}. Make it writable, or every run encodes the images again."
        yield Problem("warning", "cache_to_disk", text)
    if config.tensorboard and (obstacle := scan_write_obstacle(tensorboard_folder(home).absolute())):
        yield Problem("warning", "tensorboard", f"its logs cannot be saved: {obstacle}. Make it writable.")
