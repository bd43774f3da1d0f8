"""The part of `daam_agreement.py` that runs in daam's environment, with a folder that the other part has written.

Writes image.png and maps.npz (word → map, at the size in which daam adds up the layers) into the folder. daam knows the
sizes of SD1, SD2 and SDXL only; for smaller images, its count of locations is set to theirs.
"""

import json
import sys
from pathlib import Path

import daam
import diffusers
import numpy as np
import torch
import transformers


def main(folder: Path) -> None:
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    pipeline = build_pipeline(folder, task)
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad(), daam.trace(pipeline) as trace:
        if not task["has_daams_size"]:
            for part in (trace, *trace.module):
                part.latent_hw = (task["px"] // 8) ** 2
        image = pipeline(
            prompt=task["prompt"],
            negative_prompt="",
            latents=torch.load(folder / "noise.pt"),
            height=task["px"],
            width=task["px"],
            num_inference_steps=task["steps"],
            guidance_scale=task["cfg"],
        ).images[0]
        maps = trace.compute_global_heat_map()
        found = {word: maps.compute_word_heat_map(word).heatmap.float().numpy() for word in task["words"]}
    image.save(folder / "image.png")
    np.savez(folder / "maps.npz", **found)


def build_pipeline(folder: Path, task: dict):
    """The model as a pipeline of diffusers."""
    unet = diffusers.UNet2DConditionModel(**task["unet"])
    vae = diffusers.AutoencoderKL(**task["vae"])
    weights = torch.load(folder / "image.pt")
    unet.load_state_dict(weights["unet"])
    vae.load_state_dict(weights["vae"])
    tokenizers = [load_tokenizer(folder / "tokenizer", padding) for padding in task["padding"]]
    encoders = []
    for (config, has_projection), state in zip(task["text"], torch.load(folder / "text.pt"), strict=True):
        kind = transformers.CLIPTextModelWithProjection if has_projection else transformers.CLIPTextModel
        encoder = kind(transformers.CLIPTextConfig(**config))
        missing = encoder.load_state_dict(state, strict=False).missing_keys
        assert not [name for name in missing if "position_ids" not in name], missing
        encoders.append(encoder.eval())
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    common = {"vae": vae.eval(), "unet": unet.eval(), "scheduler": scheduler, "tokenizer": tokenizers[0]}
    if task["is_sdxl"]:
        return diffusers.StableDiffusionXLPipeline(
            text_encoder=encoders[0],
            text_encoder_2=encoders[1],
            tokenizer_2=tokenizers[1],
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
            **common,
        )
    return diffusers.StableDiffusionPipeline(
        text_encoder=encoders[0], safety_checker=None, feature_extractor=None, requires_safety_checker=False, **common
    )


def load_tokenizer(folder: Path, padding: int):
    """CLIP's tokenizer, which fills up with this token."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(folder))
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
    return tokenizer


if __name__ == "__main__":
    main(Path(sys.argv[1]))
