"""The command `heatmap`: where in an image the words of its prompt act."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.cli.settings import require_new_file
from lib_lora_train.config.heat_map_layers import HEAT_MAP_LAYERS
from lib_lora_train.config.sample_prompts import sample_prompts
from lib_lora_train.config.settings.samples import SAMPLERS
from lib_lora_train.config.train_config import TrainConfig, read_config
from lib_lora_train.config.validation.validate import require_usable, unusable_name
from lib_lora_train.core.errors import LoraTrainError, OutputError
from lib_lora_train.core.user_paths import explain_wrong_path, user_path
from lib_lora_train.dataset.captions import find_caption_file, index_by_extension, read_caption_file
from lib_lora_train.models.prompt_weights import split_words

if TYPE_CHECKING:
    from lib_lora_train.runs.images.heat_maps import HeatMapRequest, HeatMapResult


def add_heat_maps(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    maps = command(commands, "heatmap", run_heat_maps, "Show where in an image each word of its prompt acts.")
    maps.add_argument("image", nargs="?", metavar="IMAGE", help="an image; without one, the prompt is drawn")
    maps.add_argument(
        "--prompt",
        default="",
        metavar="TEXT",
        help="its prompt (default: the caption file beside the image), or what to draw, with options as in "
        "sample_prompts: 'a fox --d 7 --s 20'",
    )
    maps.add_argument(
        "--words", nargs="+", default=[], metavar="WORD", help="words or phrases of the prompt (default: each of them)"
    )
    maps.add_argument("--lora", default="", metavar="FILE", help="a LoRA file (default: the model without LoRA)")
    maps.add_argument("--ckpt", default="", metavar="FILE", help="the checkpoint (default: the tiny model)")
    maps.add_argument("--clip-skip", default="1", metavar="N", help="as in the settings (default: 1)")
    maps.add_argument("--sampler", default="", metavar="NAME", help=f"{', '.join(SAMPLERS)}: to draw the prompt")
    maps.add_argument(
        "--layers",
        choices=HEAT_MAP_LAYERS,
        default=HEAT_MAP_LAYERS[0],
        help="the layers that show objects, which is sharper (the default), or all, as in DAAM",
    )
    maps.add_argument("--name", default="", help="first part of the names of the new files (default: IMAGE's name)")
    maps.add_argument("--out", default=".", metavar="DIR", help="their folder (default: the current one)")


def run_heat_maps(options: argparse.Namespace) -> int:
    """Write an image for each word, and the drawn one; LoraTrainError, before drawing, if a file exists."""
    request = _request(options)
    words = options.words or split_words(request.prompt_text, weighted=request.is_weighted)
    if not words:
        raise LoraTrainError("The prompt has no words. Give one with --prompt, or write a caption file for the image.")
    folder, name = user_path(options.out), options.name or (request.image.stem if request.image else "heatmap")
    if options.name and (reason := unusable_name(options.name)):
        raise LoraTrainError(f"The name {reason}")
    files = {word: require_new_file(file) for word, file in _files(folder, name, words).items()}
    drawn = None if request.image else require_new_file(folder / f"{name}.png")
    result = _record(replace(request, words=tuple(words)), options)
    if drawn:
        _write_image(drawn, result)
    for word, file in files.items():
        _write_map(file, result, word, options)
    return 0


def _request(options: argparse.Namespace) -> HeatMapRequest:
    """What to look at or draw; LoraTrainError if there is neither, ConfigError for settings that are out of range."""
    from lib_lora_train.runs.images.heat_maps import HeatMapRequest

    lora = user_path(options.lora) if options.lora else None
    if options.image:
        image = user_path(options.image)
        if reason := explain_wrong_path(image):
            raise LoraTrainError(f"{image} {reason} Choose an image.")
        text = options.prompt or _caption_of(image)
        return HeatMapRequest(_config(options, {}), text=text, image=image, lora=lora)
    config = _config(options, {"sample_prompts": [options.prompt], **_own_resolution(options.ckpt)})
    prompts = sample_prompts(config)
    if not prompts:
        raise LoraTrainError("Give an image, or a prompt to draw with --prompt.")
    return HeatMapRequest(config, prompt=prompts[0], lora=lora)


def _config(options: argparse.Namespace, values: Mapping[str, Any]) -> TrainConfig:
    sampler = {"sample_sampler": options.sampler} if options.sampler else {}
    config, problems = read_config({"checkpoint": options.ckpt, "clip_skip": options.clip_skip, **sampler, **values})
    require_usable(problems)
    return config


def _own_resolution(checkpoint: str) -> dict[str, int]:
    """The size that the checkpoint was trained at."""
    from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
    from lib_lora_train.models.model_files import read_checkpoint_info

    path = user_path(checkpoint) if checkpoint else EMBEDDED_CHECKPOINT
    return {"resolution": read_checkpoint_info(path).spec.own_resolution}


def _caption_of(image: Path) -> str:
    """The text of the caption file beside the image, "" if there is none."""
    if not image.parent.is_dir():
        return ""
    extension = TrainConfig().caption_extension
    file = find_caption_file(image, extension, index_by_extension(image.parent.iterdir()))
    return read_caption_file(file)[0].joined if file else ""


def _files(folder: Path, name: str, words: Sequence[str]) -> dict[str, Path]:
    """Word → file; OutputError if the folder does not exist."""
    if not folder.is_dir():
        raise OutputError(f"{folder} does not exist. Create it, or choose another folder with --out.")
    files: dict[str, Path] = {}
    for word in words:
        part = re.sub(r"[^\w-]+", "_", word).strip("_")[:60] or "word"
        endings = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        same = (folder / f"{name}-{part}{ending}.png" for ending in endings)
        taken = {file.name.lower() for file in files.values()}  # many file systems ignore case
        files[word] = next(file for file in same if file.name.lower() not in taken)
    return files


def _record(request: HeatMapRequest, options: argparse.Namespace) -> HeatMapResult:
    from lib_lora_train.core.control import Control
    from lib_lora_train.core.generators import result_of
    from lib_lora_train.hosts.standalone import StandaloneHost
    from lib_lora_train.runs.images.heat_maps import record_heat_maps

    host = StandaloneHost(None, None, user_path(options.out), "cpu" if options.cpu else None)
    return result_of(record_heat_maps(request, host, Control()))


def _write_image(file: Path, result: HeatMapResult) -> None:
    from lib_lora_train.sampling.infotext import write_image

    write_image(file, result.image)


def _write_map(file: Path, result: HeatMapResult, word: str, options: argparse.Namespace) -> None:
    """Write a word's map, laid over the image, and print how strong it is."""
    from lib_lora_train.sampling.infotext import write_image
    from lib_lora_train.sampling.overlay import overlay

    heat_map = result.attention.heat_map(word, options.layers)
    write_image(file, overlay(result.image, heat_map.values))
    print(f"{word}: at most {heat_map.peak:.1%} of the attention of a location. {file}")
