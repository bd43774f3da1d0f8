"""Tiny models as folders in diffusers' layout, written by diffusers and transformers themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler

from lib_lora_train.models.diffusion_model import DiffusionModel
from tests.stand_ins.tiny_models import TOKENIZER

CLASSES = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "text_encoder": ["transformers", "CLIPTextModel"],
}


def write_model_folder(
    path: Path, model: DiffusionModel, *, shard: str = "10GB", variant: str | None = None, **scheduler: Any
) -> Path:
    """The model as a folder; `shard` is the largest size of a file, `scheduler` the scheduler's settings."""
    encoders = {"text_encoder" if not n else "text_encoder_2": one for n, one in enumerate(model.text_encoders)}
    for name, module in {"unet": model.unet, "vae": model.vae, **encoders}.items():
        for parameter in module.parameters():
            parameter.set_(parameter.detach().clone())  # safetensors refuses q, k and v in one storage
        module.save_pretrained(path / name, max_shard_size=shard, variant=variant)
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, **scheduler}
    DDIMScheduler(**schedule).save_pretrained(path / "scheduler")
    shutil.copytree(TOKENIZER, path / "tokenizer")
    is_sdxl = len(model.text_encoders) == 2
    second = {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]} if is_sdxl else {}
    pipeline = f"StableDiffusion{'XL' if is_sdxl else ''}Pipeline"
    write_index(path, {"_class_name": pipeline, **CLASSES, **second, "safety_checker": [None, None]})
    return path


def write_index(path: Path, values: dict[str, Any]) -> None:
    """The folder's model_index.json."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "model_index.json").write_text(json.dumps(values), encoding="utf-8")


def edit_json(path: Path, **values: Any) -> None:
    """Change values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def same_weights(one: DiffusionModel, other: DiffusionModel) -> bool:
    """Whether all parameters are equal bit by bit."""
    modules = zip((one.unet, one.vae, *one.text_encoders), (other.unet, other.vae, *other.text_encoders), strict=True)
    pairs = [(a.state_dict(), b.state_dict()) for a, b in modules]
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in pairs)
