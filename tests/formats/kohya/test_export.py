"""Settings that are exported for kohya's tools and imported again are the same, except for what the account names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.presets import PRESETS, Preset
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.config.validation.validate import validate
from lib_lora_train.core.errors import ConfigError
from lib_lora_train.formats.kohya.exporter import ENDINGS, TARGETS, Target, to_gui, to_script, write_exported
from lib_lora_train.formats.kohya.network_kinds import ALGOS, NAMES
from lib_lora_train.formats.kohya.read_files import read_settings
from tests.formats.kohya.exported_settings import valid_configs

LORA_PRESETS = [preset for preset in PRESETS if preset.values.get("method", "lora") == "lora"]
WRITTEN_OTHERWISE = {"family", "resolution_height", "train_text_encoder", "train_unet"}
"""Settings that kohya's tools have under other names, as the exporter knows."""
NOT_THERE = {parameter.name for parameter in parameters_of(TrainConfig) if not parameter.kohya} - WRITTEN_OTHERWISE
NOT_THERE |= {"precision"}  # kohya's has no "auto"
"""Settings that declare no name of kohya's tools; what they lose has to be in the account."""
ONLY_THIS_PROGRAM = {
    *("caption_variants", "files_for_webui", "keep_last_states", "make_grid", "measure_likeness", "measure_prompts"),
    *("measure_steady_loss", "sample_cfg", "sample_steps", "save_from_epoch", "save_state", "write_card"),
    *("save_state_every_n_steps", "tensorboard", "test_strengths", "webui_sampler", "cache_to_disk"),
}
DEPENDING = {
    "epochs",  # with max_steps
    "seed",  # above kohya's limit, or 0 in the GUI
    "lora_precision",  # other than the precision
    "prediction_type",  # epsilon is kohya's default, rectified_flow not available
    "zero_terminal_snr",  # off is kohya's default
    *("scale_v_pred_loss_like_noise_pred", "v_pred_like_loss"),  # with another prediction_type
    *("min_bucket", "max_bucket"),  # beyond the resolution
    *("conv_rank", "conv_alpha", "targets"),  # with DyLoRA, and LyCORIS' presets of layers
    *("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_ranks", "block_alphas"),  # with LyCORIS
    *("rank_dropout", "module_dropout"),  # with DyLoRA and (IA)3
    *("alpha", "lr_min_ratio", "keep_last_step_files", "text_encoder_2_lr"),
    *("sample_every_n_epochs", "sample_every_n_steps", "sample_sampler"),
}
NO_FIELD = {
    *("caption_prefix", "caption_suffix", "caption_separator", "caption_wildcards", "secondary_separator"),
    *("tag_dropout", "token_warmup_steps", "token_warmup_min", "keep_tokens_separator"),
}
"""Settings of captions that the GUI has no field for: they need a dataset file, and that needs folders."""
ALWAYS_QUIET = {"affixes_as_tags"}  # without a prefix or suffix


def idle(config: TrainConfig) -> set[str]:
    return {p.where for p in validate(config) if p.message.startswith("has no effect")}


def meaning(config: TrainConfig) -> dict[str, Any]:
    """What every setting of the run comes to."""
    values = {parameter.name: getattr(config, parameter.name) for parameter in parameters_of(TrainConfig)}
    text, has_convolutions = config.effective_text_encoder_lr, config.targets in ("all", "full")
    has_unet, has_text = config.train_unet and config.effective_unet_lr > 0, config.train_text_encoder and text > 0
    second = config.text_encoder_2_lr
    fixed = (
        {"scale_parameter=False", "relative_step=False"} if config.optimizer == "Adafactor" else set()
    )  # our defaults
    values |= {
        "alpha": config.effective_alpha,
        "train_unet": has_unet,  # a rate of 0 is as good as off, and is off in the GUI
        "train_text_encoder": has_text,
        "unet_lr": config.effective_unet_lr if has_unet else None,
        "text_encoder_lr": text if has_text else None,
        "text_encoder_2_lr": (text if second is None else second) if has_text else None,
        "resolution_height": config.resolution_size[1],
        "conv_rank": (config.conv_rank or config.rank) if has_convolutions else None,
        "conv_alpha": (config.effective_conv_alpha or config.effective_alpha) if has_convolutions else None,
        "lr_schedule": config.lr_schedule.removesuffix("_with_warmup"),
        "optimizer_args": set(config.optimizer_args.split()) - fixed,
    }
    return values


IN_FOLDERS = {"shuffle_captions", "keep_tokens", "caption_prefix", "caption_suffix", "caption_dropout", "tag_dropout"}
"""Compared by `folder_meaning`."""


def folder_meaning(config: TrainConfig) -> list[tuple[Any, ...]]:
    """What sd-scripts can know of every folder, once for each of its resolutions."""
    return sorted(
        (
            Path(concept.folder).as_posix(),
            concept.repeats or (10 if "/10_" in concept.folder else 1),
            concept.is_regularisation and not concept.caption_file,
            int(side or config.resolution_side),
            concept.flip,
            concept.random_crop,
            concept.colour_jitter > 0,
            concept.use_masks,
            concept.own_shuffle == "on" or (concept.own_shuffle == "as the run" and config.shuffle_captions),
            config.keep_tokens if concept.own_keep_tokens is None else concept.own_keep_tokens,
            concept.own_prefix or config.caption_prefix,
            concept.own_suffix or config.caption_suffix,
            config.caption_dropout if concept.own_caption_dropout is None else concept.own_caption_dropout,
            config.tag_dropout if concept.own_tag_dropout is None else concept.own_tag_dropout,
        )
        for concept in config.concepts
        for side in (concept.resolutions.split() or [""])
    )


def check_round_trip(config: TrainConfig, target: Target, folder: Path) -> None:
    """Everything comes back, except for what kohya's tools do not have; what does not come back is in the account."""
    path = folder / f"fox{ENDINGS[target]}"
    exported = write_exported(path, config, target)
    read_back = read_settings(path).config
    for written in exported.paths:
        written.unlink()
    ours, theirs = meaning(config), meaning(read_back)
    differing = {name for name in ours if ours[name] != theirs[name]} - (IN_FOLDERS if config.concepts else set())
    own_sides = {concept.resolutions.split()[0] if concept.resolutions else "" for concept in config.concepts}
    if config.concepts and not own_sides & {"", str(config.resolution_side)}:
        differing -= {"resolution", "resolution_height", "min_bucket", "max_bucket"}  # no folder is trained at these
    named = {lost.key for lost in exported.lost}
    has_no_own_name = {"family"} if ALGOS.get(NAMES[config.family][1]) != config.family else set()
    at_kohyas_default = {"prediction_type": "epsilon", "zero_terminal_snr": "off"}
    no_field = NO_FIELD if target == "kohya_ss" and "datasets" not in exported.dataset else set()
    for name in differing - idle(config):
        is_default = ours[name] == at_kohyas_default.get(name)
        assert name in NOT_THERE | ONLY_THIS_PROGRAM | DEPENDING | no_field | has_no_own_name, (
            f"{name} = {ours[name]} came back as {theirs[name]}. Export it, or declare no kohya name."
        )
        assert name in named or is_default or name in ALWAYS_QUIET, (name, ours[name], theirs[name])
    if config.concepts:
        assert folder_meaning(read_back) == folder_meaning(config)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("preset", LORA_PRESETS, ids=lambda preset: preset.name)
def test_every_preset_comes_back(preset: Preset, target: Target, tmp_path: Path) -> None:
    check_round_trip(TrainConfig(concepts=(Concept("/data/fox"),), **preset.values), target, tmp_path)
    exported = (to_gui if target == "kohya_ss" else to_script)(TrainConfig(precision="bf16", **preset.values))
    matters = {
        lost.key for lost in exported.lost if not lost.is_harmless and not lost.reason.startswith("matters only")
    }
    assert matters <= {"family", "targets", "balance_repeats", "timestep_sampling", "method"}


@pytest.mark.parametrize("target", TARGETS)
def test_settings_that_train_no_lora_are_refused(target: Target, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method is textual_inversion"):
        write_exported(tmp_path / f"a{ENDINGS[target]}", TrainConfig(method="textual_inversion"), target)


@pytest.mark.parametrize("target", TARGETS)
def test_valid_settings_come_back(target: Target, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("export")

    @settings(max_examples=200, derandomize=True)
    @given(valid_configs())
    def check(config: TrainConfig) -> None:
        check_round_trip(config, target, folder)

    check()
