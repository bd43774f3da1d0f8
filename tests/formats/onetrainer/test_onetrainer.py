"""OneTrainer's settings are imported by meaning, with its defaults, and every key is accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.core.errors import ConfigError
from lib_lora_train.formats.kohya.importer import Imported
from lib_lora_train.formats.kohya.read_files import read_settings
from lib_lora_train.formats.kohya.report import describe_lost

PLAIN: dict[str, Any] = {"training_method": "LORA", "model_type": "STABLE_DIFFUSION_15"}
CONCEPT: dict[str, Any] = {"path": "/data/fox", "enabled": True, "type": "STANDARD", "image": {}, "text": {}}


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def write_and_read(values: Any) -> Imported:
        path = tmp_path / "run.json"
        path.write_text(json.dumps(values), encoding="utf-8")
        return read_settings(path)

    return write_and_read


def test_missing_keys_have_onetrainers_defaults(read: Any) -> None:
    config = read(PLAIN).config
    assert (config.rank, config.alpha, config.targets) == (16, 1.0, "full")
    assert (config.learning_rate, config.lr_schedule, config.warmup) == (3e-6, "constant_with_warmup", 200)
    assert (config.epochs, config.batch_size, config.precision, config.save_precision) == (100, 1, "fp16", "fp32")
    assert (config.gradient_checkpointing, config.caption_lines, config.save_every_n_epochs) == (True, "random", 100)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"peft_type": "LOKR", "lokr_dim": 8, "lokr_decompose_factor": 4},
            {"family": "lokr", "rank": 8, "lokr_factor": 4},
        ),
        ({"peft_type": "LOHA", "lora_rank": 4, "lora_alpha": 4.0}, {"family": "loha", "rank": 4, "alpha": None}),
        ({"lora_decompose": True}, {"dora": True}),
        ({"layer_filter_preset": "attn-mlp"}, {"targets": "standard"}),
        ({"resolution": "512x768"}, {"resolution": 512, "resolution_height": 768}),
        (
            {"text_encoder": {"train": False}, "unet": {"learning_rate": 1e-4}},
            {"train_text_encoder": False, "unet_lr": 1e-4},
        ),
        (
            {"learning_rate_scheduler": "COSINE", "learning_rate_warmup_steps": 0.1},
            {"lr_schedule": "cosine", "warmup": 0.1},
        ),
        ({"learning_rate_scheduler": "COSINE", "learning_rate_min_factor": 0.1}, {"lr_schedule": "cosine_with_min_lr"}),
        ({"gradient_accumulation_steps": 4}, {"gradient_accumulation": 4, "warmup": 50.0}),
        ({"loss_weight_fn": "MIN_SNR_GAMMA"}, {"min_snr_gamma": 5.0}),
        ({"mse_strength": 0.0, "mae_strength": 1.0}, {"loss_type": "l1"}),
        (
            {"timestep_distribution": "LOGIT_NORMAL", "noising_bias": 0.5},
            {"timestep_sampling": "sigmoid", "sigmoid_mean": 0.5},
        ),
        ({"min_noising_strength": 0.1, "max_noising_strength": 0.9}, {"min_timestep": 100, "max_timestep": 900}),
        ({"force_v_prediction": True}, {"prediction_type": "v_prediction"}),
        ({"clip_grad_norm": None}, {"max_grad_norm": 0.0}),
        ({"ema": "GPU", "ema_decay": 0.99}, {"ema_decay": 0.99}),
        ({"save_every": 3, "save_every_unit": "EPOCH"}, {"save_every_n_epochs": 3}),
        ({"output_model_destination": "/loras/fox.safetensors"}, {"output_name": "fox", "output_dir": "/loras"}),
        ({"text_encoder_layer_skip": 1}, {"clip_skip": 2}),
    ],
)
def test_settings_are_imported_by_meaning(read: Any, values: dict[str, Any], expected: dict[str, Any]) -> None:
    config = read({**PLAIN, **values}).config
    assert {name: getattr(config, name) for name in expected} == expected


def test_optimisers_keep_their_arguments_and_get_onetrainers_own(read: Any) -> None:
    given = {"optimizer": "PRODIGY", "beta1": 0.9, "beta2": 0.99, "d_coef": 2.0, "growth_rate": float("inf")}
    config = read({**PLAIN, "optimizer": given}).config
    assert config.optimizer == "Prodigy"
    assert set(config.optimizer_args.split()) == {
        *("weight_decay=0", "decouple=True", "slice_p=11", "d_coef=2.0", "betas=0.9,0.99"),
    }
    replaced = read({**PLAIN, "optimizer": {"optimizer": "MUON"}})
    assert replaced.config.optimizer == "AdamW"
    assert any("MUON is not available" in str(problem) for problem in replaced.problems)


def test_sdxl_may_train_one_of_its_text_encoders(read: Any) -> None:
    values = {**PLAIN, "model_type": "STABLE_DIFFUSION_XL_10_BASE", "text_encoder_2": {"train": False}}
    config = read(values).config
    assert (config.train_text_encoder, config.text_encoder_lr, config.text_encoder_2_lr) == (True, None, 0.0)


def test_concepts_become_folders_with_their_own_captions(read: Any) -> None:
    text = {
        "enable_tag_shuffling": True,
        "keep_tags_count": 2,
        "tag_dropout_enable": True,
        "tag_dropout_mode": "RANDOM",
    }
    text |= {"tag_dropout_probability": 0.1}
    image = {"enable_random_flip": True, "enable_random_hue": True, "random_hue_max_strength": 0.2}
    table = {**CONCEPT, "balancing": 3.0, "text": text, "image": image, "image_variations": 4, "loss_weight": 0.5}
    imported = read({**PLAIN, "masked_training": True, "concepts": [table, {**CONCEPT, "enabled": False}]})
    (concept,) = imported.config.concepts
    assert (concept.folder, concept.repeats, concept.flip, concept.colour_jitter) == ("/data/fox", 3, True, 0.2)
    assert (concept.own_shuffle, concept.own_keep_tokens, concept.own_tag_dropout) == ("on", 2, 0.1)
    assert (concept.random_crop, concept.augment_variants, concept.use_masks) == (True, 4, True)
    lost = "\n".join(describe_lost(imported.ignored))
    assert "concepts[1].loss_weight = 0.5 is not supported" in lost
    assert "concepts[2] = /data/fox is switched off in the file" in lost


def test_concepts_and_samples_in_separate_files_are_found(read: Any, tmp_path: Path) -> None:
    (tmp_path / "concepts.json").write_text(json.dumps([CONCEPT]), encoding="utf-8")
    samples = [{"prompt": "a fox", "width": 512, "seed": 7, "cfg_scale": 6.5}, {"prompt": "off", "enabled": False}]
    (tmp_path / "samples.json").write_text(json.dumps(samples), encoding="utf-8")
    config = read({**PLAIN, "concept_file_name": "concepts.json", "sample_definition_file_name": "samples.json"}).config
    assert [concept.folder for concept in config.concepts] == ["/data/fox"]
    assert config.sample_prompts == ("a fox --d 7 --w 512 --l 6.5",)
    assert [concept.folder for concept in read([CONCEPT]).config.concepts] == ["/data/fox"]


def test_every_key_is_used_or_named_with_a_reason(read: Any) -> None:
    values = {**PLAIN, "some_new_option": 3, "backup_after": 30, "unet": {"train": True, "weight_dtype": "FLOAT_16"}}
    imported = read(values)
    flat = {"training_method", "model_type", "some_new_option", "backup_after", "unet.train", "unet.weight_dtype"}
    assert set(imported.used_keys) | {one.key for one in imported.ignored} == flat
    assert describe_lost(imported.ignored) == ("some_new_option = 3 is not supported.",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**PLAIN, "training_method": "FINE_TUNE"}, "training_method is FINE_TUNE"),
        ({**PLAIN, "model_type": "FLUX_DEV_1"}, "model_type is FLUX_DEV_1"),
        ({**PLAIN, "model_type": "STABLE_DIFFUSION_35"}, "STABLE_DIFFUSION_35"),
        ({**PLAIN, "model_type": "STABLE_DIFFUSION_15_INPAINTING"}, "INPAINTING"),
        ([1, 2], "not a table of settings"),
    ],
)
def test_files_for_something_else_are_refused(read: Any, values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(values)


@pytest.mark.parametrize("value", [None, "", "x", -1, 1e30, [], {}, True])
def test_odd_values_are_reported_and_the_rest_is_read(read: Any, value: Any) -> None:
    for name in ("lora_rank", "learning_rate", "epochs", "resolution", "concepts", "optimizer", "unet", "samples"):
        assert read({**PLAIN, "batch_size": 3, name: value}).config.batch_size == 3
