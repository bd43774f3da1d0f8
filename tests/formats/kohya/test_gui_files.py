"""Files of the kohya_ss GUI mean what its own code passes on to sd-scripts.

`gui_files.json` has the presets and test files that kohya_ss comes with (45088f0, July 2026), without paths: what each
of them has `saved`, and the arguments that kohya_ss itself has `written` for sd-scripts from it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from lib_lora_train.config.train_config import config_values
from lib_lora_train.formats.kohya.importer import from_gui, from_script
from tests.paths import KOHYA_FILES

FILES: dict[str, dict[str, Any]] = json.loads((KOHYA_FILES / "gui_files.json").read_text(encoding="utf-8"))

SAME = {
    "max_bucket_reso": "max_bucket",
    "min_bucket_reso": "min_bucket",
    "max_token_length": "max_token_length",
    "train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "learning_rate": "learning_rate",
    "noise_offset": "noise_offset",
    "multires_noise_iterations": "multires_noise_iterations",
    "min_snr_gamma": "min_snr_gamma",
    "keep_tokens": "keep_tokens",
    "clip_skip": "clip_skip",
    "caption_dropout_rate": "caption_dropout",
    "network_dropout": "network_dropout",
    "scale_weight_norms": "scale_weight_norms",
    "prior_loss_weight": "prior_loss_weight",
    "mixed_precision": "precision",
    "seed": "seed",
}
FLAGS = {
    "bucket_no_upscale": "bucket_no_upscale",
    "shuffle_caption": "shuffle_captions",
    "gradient_checkpointing": "gradient_checkpointing",
    "enable_bucket": "enable_buckets",
}
_LENGTH = {"epochs", "max_steps", "save_every_n_epochs"}
"""The form adds 1600 steps to files of versions without that field, which trained all epochs."""
_DROPPED_0 = {"max_grad_norm"}
"""The GUI drops a 0 and trains with 1; here it is kept, with a hint."""
_EMPTY_CYCLES = {"lr_cycles"}
"""Files with an empty number of cycles are from versions that took the number of epochs; today's GUI reads 1."""


def _has_arguments(saved: dict[str, Any]) -> bool:
    """Whether the user added arguments, which the GUI passes on beside those that it writes."""
    return bool(str(saved.get("additional_parameters", "")).strip())


@pytest.mark.parametrize("name", FILES)
def test_single_values_are_those_that_the_gui_writes(name: str) -> None:
    saved, written = FILES[name]["saved"], FILES[name]["written"]
    config = from_gui(saved).config
    if _has_arguments(saved):
        written = {key: value for key, value in written.items() if key not in saved["additional_parameters"]}
    for key, ours in SAME.items():
        if key in written and key in {**saved, "max_bucket_reso": 0, "max_token_length": 0, "mixed_precision": 0}:
            assert getattr(config, ours) == written[key], key
    for key, ours in FLAGS.items():
        assert getattr(config, ours) == bool(written.get(key)), key
    rank = written["network_dim"]
    assert config.full_matrix if rank == 100_000 else config.rank == rank, "network_dim"
    if rank != 100_000:
        assert config.effective_alpha == written["network_alpha"], "network_alpha"
    assert ",".join(map(str, config.resolution_size)) == written["resolution"], "resolution"


@pytest.mark.parametrize("name", FILES)
def test_a_saved_file_is_imported_like_the_arguments_that_the_gui_writes(name: str) -> None:
    saved, written = FILES[name]["saved"], FILES[name]["written"]
    ours, theirs = from_gui(saved), from_script(written)
    values, expected = (config_values(imported.config) for imported in (ours, theirs))
    different = {key for key in values if values[key] != expected[key]} - _LENGTH - _DROPPED_0 - _EMPTY_CYCLES
    added = {"train_text_encoder", "lr_schedule", "min_snr_gamma", "optimizer_args"} if _has_arguments(saved) else set()
    assert different <= added, {key: (values[key], expected[key]) for key in different}
