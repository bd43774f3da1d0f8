"""Random settings that are valid together, to export them for kohya's tools."""

from __future__ import annotations

from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from lib_lora_train.config.parameters import STEPS_OR_SHARE, Parameter, parameters_of
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.config.validation.validate import validate

_TEXTS: dict[str, list[Any]] = {
    "method": ["lora"],
    "embedding_init_text": [""],
    "checkpoint": ["/models/base.safetensors"],
    "vae": ["/models/vae.pt"],
    "continue_from": ["/loras/before.safetensors"],
    "output_dir": ["/loras", "C:\\loras"],
    "output_name": ["fox", "füchse 2"],
    "caption_extension": [".txt", ".caption"],
    "keep_tokens_separator": ["|||", "", "@@"],
    "caption_separator": [",", ";"],
    "secondary_separator": ["", ";;;"],
    "caption_prefix": ["", "photo of,", 'a "fox",'],
    "caption_suffix": ["", ", best quality"],
    "comment": ["", "first\ttry = 1"],
    "optimizer_args": ["", "weight_decay=0.05", "weight_decay=0.1 betas=0.9,0.95"],
    "custom_optimizer": [""],
    "block_ranks": ["", ",".join(["4"] * 25)],
    "block_alphas": [""],
    "down_lr_weight": ["", ",".join(["0.5"] * 12)],
    "mid_lr_weight": ["", "0.8"],
    "up_lr_weight": ["", ",".join(["1"] * 12)],
    "webui_sampler": ["", "DPM++ 2M"],
    "sample_prompts": [(), ("a fox --w 512 --n bad, worse", "# control", "a tree")],
    "layer_ranks": [()],
    "layer_lr_weights": [()],
    "leave_out_images": [(), ("a.png",)],
    "leave_out_tags": [(), ("hat",)],
    "prior_preservation_prompts": [()],
    "max_token_length": [75, 150, 225],
    "bucket_step": [32, 64],
    "min_bucket": [128, 256, 320],
    "resolution": [512, 640, 768, 1024],
    "resolution_height": [None, 512, 768],
    "max_bucket": [1024, 1536, 2048],
    "folder": ["/data/fox", "/data/10_cat", "C:\\data\\dog"],
    "trigger": ["", "zorp"],
    "class_word": ["", "cat", "big cat"],
    "caption_file": ["", "meta.json"],
    "resolutions": ["", "512", "768 1024"],
    "alpha_background": ["white", "grey"],
    "own_prefix": ["", "own,"],
    "own_suffix": ["", ", own"],
}
"""Values of settings that are texts, or that fit others only at some values."""
_CUSTOM = {"optimizer": ("Custom",)}


def _values(parameter: Parameter) -> st.SearchStrategy[Any]:
    if parameter.name in _TEXTS:
        return st.sampled_from(_TEXTS[parameter.name])
    if parameter.choices:
        return st.sampled_from([c for c in parameter.choices if c not in _CUSTOM.get(parameter.name, ())])
    if parameter.kind is bool:
        return st.booleans()
    low, high = parameter.low or 0, min(parameter.high or 1, 1000)
    numbers: st.SearchStrategy[Any] = (
        st.integers(int(low), int(high)) if parameter.kind is int else _floats(parameter, low, high)
    )
    return st.none() | numbers if parameter.optional else numbers


def _floats(parameter: Parameter, low: float, high: float) -> st.SearchStrategy[float]:
    numbers = st.floats(low, high).map(lambda x: round(x, 4))
    return numbers.map(lambda x: float(int(x)) if x >= 1 else x) if parameter.unit == STEPS_OR_SHARE else numbers


_RUN = {parameter.name: _values(parameter) for parameter in parameters_of(TrainConfig)}
_FOLDER = {parameter.name: _values(parameter) for parameter in parameters_of(Concept)}


@st.composite
def valid_configs(draw: st.DrawFn) -> TrainConfig:
    """Up to a dozen settings with any value, and up to three folders; together they have no error."""
    names = draw(st.sets(st.sampled_from(sorted(_RUN)), max_size=12))
    config = TrainConfig(**{name: draw(_RUN[name]) for name in sorted(names)})
    folders = []
    for number in range(draw(st.integers(0, 3))):
        own = draw(st.sets(st.sampled_from(sorted(_FOLDER)), max_size=5))
        values = {name: draw(_FOLDER[name]) for name in sorted(own)}
        values["folder"] = f"{values.get('folder', '/data/fox')}{number}"
        folders.append(Concept(**values))
    config = config.replace(concepts=tuple(folders))
    errors = [p.where for p in validate(config) if p.level == "error" and p.where != "concepts"]
    default = TrainConfig()
    reset = {name: getattr(default, name) for name in errors if hasattr(default, name)}
    config = config.replace(**reset)
    assume(not [p for p in validate(config) if p.level == "error" and p.where != "concepts"])
    return config
