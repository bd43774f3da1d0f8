"""The metadata of a LoRA file."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.settings.optimizer import LR_SCHEDULES
from lib_lora_train.config.train_config import CONFIG_KEY, Concept, TrainConfig, read_config
from lib_lora_train.dataset.buckets import Placement
from lib_lora_train.dataset.images import ImageFile
from lib_lora_train.dataset.plan import BucketSummary, Plan
from lib_lora_train.dataset.scan import Dataset, Item, ScannedConcept
from lib_lora_train.formats.metadata import RunFacts, run_metadata, shareable_config

RUN = RunFacts("my-lora-000003", epoch=3, step=30, started=1.5, finished=1_700_000_000.9, session_id="7")

# Every key that kohya-made files have and tools look for.
KOHYA_KEYS = re.findall(
    r"\w+",
    """
    session_id training_started_at training_finished_at steps epoch output_name training_comment seed learning_rate
    unet_lr text_encoder_lr optimizer lr_scheduler lr_warmup_steps max_grad_norm gradient_checkpointing
    gradient_accumulation_steps max_train_steps num_epochs num_batches_per_epoch mixed_precision network_module
    network_dim network_alpha network_dropout network_args scale_weight_norms v2 base_model_version sd_model_name
    sd_model_hash new_sd_model_hash vae_name vae_hash new_vae_hash clip_skip max_token_length noise_offset
    multires_noise_iterations multires_noise_discount adaptive_noise_scale zero_terminal_snr ip_noise_gamma
    min_snr_gamma debiased_estimation scale_v_pred_loss_like_noise_pred v_pred_like_loss huber_schedule huber_c
    huber_scale
    noise_offset_random_strength ip_noise_gamma_random_strength loss_type
    prior_loss_weight num_train_images num_reg_images
    caption_dropout_rate caption_tag_dropout_rate cache_latents batch_size_per_device total_batch_size resolution
    color_aug flip_aug random_crop shuffle_caption enable_bucket min_bucket_reso max_bucket_reso keep_tokens
    reg_dataset_dirs dataset_dirs tag_frequency bucket_info full_fp16 full_bf16
""",
)


def a_concept(name: str, repeats: int, images: int, trigger: str = "", regularisation: bool = False) -> ScannedConcept:
    return ScannedConcept(name, Path("data") / name, repeats, trigger, regularisation, images)


def an_item(concept: int, caption: str, width: int, height: int) -> Item:
    return Item(ImageFile(Path("a.png"), width, height, "00"), caption, concept)


def a_plan(batch_size: int = 2) -> Plan:
    """Two images of a concept in a kohya folder, one in a plain folder, one for regularisation."""
    dataset = Dataset(
        concepts=(a_concept("10_cat", 10, 2, "zxc"), a_concept("dog", 3, 1), a_concept("1_animal", 1, 1, "", True)),
        items=(
            an_item(0, "zxc cat, Red , sitting", 640, 512),
            an_item(0, "zxc cat, red", 512, 512),
            an_item(1, "a dog", 500, 500),
            an_item(2, "", 512, 512),
        ),
        problems=(),
    )
    square, wide = Placement(512, 512, 0, 0, 512, 512), Placement(576, 461, 0, 6, 576, 448)
    return Plan(
        dataset=dataset,
        placements=(wide, square, square, square),
        buckets=(BucketSummary(512, 512, 3, 14, 2), BucketSummary(576, 448, 1, 10, 2)),
        repeats=(10, 10, 3, 1),
        batch_size=batch_size,
        accumulation=1,
        steps_per_epoch=12,
        epochs=10,
        total_steps=120,
        warnings=(),
    )


def a_model(architecture: str = "sd1", prediction: str = "epsilon", dtype: torch.dtype = torch.float32) -> Any:
    return SimpleNamespace(
        spec=SimpleNamespace(architecture=architecture, prediction_type=prediction, zero_terminal_snr=False),
        name="base",
        path=Path("models") / "base.safetensors",
        file_hash="ab" * 32,
        dtype=dtype,
    )


def metadata(config: TrainConfig | None = None, **model: Any) -> dict[str, str]:
    return run_metadata(config or TrainConfig(), a_plan(), a_model(**model), RUN)


def test_all_values_are_text_and_all_kohya_keys_are_there() -> None:
    values = metadata()
    assert all(isinstance(value, str) for value in values.values())
    assert [key for key in KOHYA_KEYS if f"ss_{key}" not in values] == []


@pytest.mark.parametrize(
    ("model", "prediction", "version", "architecture", "is_v2"),
    [
        ("sd1", "epsilon", "sd_v1", "stable-diffusion-v1/lora", "False"),
        ("sd1", "v_prediction", "sd_v1_v", "stable-diffusion-v1/lora", "False"),
        ("sd2", "epsilon", "sd_v2", "stable-diffusion-v2-512/lora", "True"),
        ("sd2", "v_prediction", "sd_v2_v", "stable-diffusion-v2-768-v/lora", "True"),
        ("sdxl", "v_prediction", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", "False"),
    ],
)
def test_the_base_model_version_is_what_webuis_expect(
    model: str, prediction: str, version: str, architecture: str, is_v2: str
) -> None:
    values = metadata(architecture=model, prediction=prediction)
    assert values["ss_base_model_version"] == version
    assert values["modelspec.architecture"] == architecture
    assert values["ss_v2"] == is_v2
    assert values["modelspec.prediction_type"] == ("epsilon" if prediction == "epsilon" else "v")


def test_tags_are_counted_per_folder_in_lower_case_without_repeats() -> None:
    expected = {"10_cat": {"zxc cat": 2, "red": 2, "sitting": 1}, "3_dog": {"a dog": 1}, "1_animal": {}}
    assert json.loads(metadata()["ss_tag_frequency"]) == expected


def test_folders_have_repeats_and_image_counts() -> None:
    values = metadata()
    assert json.loads(values["ss_dataset_dirs"]) == {
        "10_cat": {"n_repeats": 10, "img_count": 2},
        "3_dog": {"n_repeats": 3, "img_count": 1},
    }
    assert json.loads(values["ss_reg_dataset_dirs"]) == {"1_animal": {"n_repeats": 1, "img_count": 1}}
    assert (values["ss_num_train_images"], values["ss_num_reg_images"]) == ("23", "1")


def test_folders_of_the_same_name_are_counted_together() -> None:
    plan = a_plan()
    concepts = (*plan.dataset.concepts, a_concept("cat", 10, 2))
    plan = dataclasses.replace(plan, dataset=dataclasses.replace(plan.dataset, concepts=concepts))
    values = run_metadata(TrainConfig(), plan, a_model(), RUN)
    assert json.loads(values["ss_dataset_dirs"])["10_cat"] == {"n_repeats": 10, "img_count": 4}


def test_buckets_have_the_mean_aspect_ratio_error() -> None:
    info = json.loads(metadata()["ss_bucket_info"])
    assert info["buckets"]["1"] == {"resolution": [576, 448], "count": 10}
    assert info["mean_img_ar_error"] == pytest.approx(abs(640 / 512 - 576 / 448) / 4)
    assert metadata(TrainConfig(enable_buckets=False))["ss_bucket_info"] == "None"


def test_batches_are_counted_per_bucket() -> None:
    values = run_metadata(TrainConfig(batch_size=4), a_plan(batch_size=4), a_model(), RUN)
    assert values["ss_num_batches_per_epoch"] == str(4 + 3)


def test_learning_rates_are_the_ones_used_and_none_for_what_is_not_trained() -> None:
    values = metadata(TrainConfig(learning_rate=1e-4, unet_lr=2e-4, train_text_encoder=False))
    assert (values["ss_unet_lr"], values["ss_text_encoder_lr"]) == ("0.0002", "None")
    assert metadata(TrainConfig(learning_rate=1e-4))["ss_text_encoder_lr"] == "0.0001"


def test_warmup_is_in_steps() -> None:
    assert metadata(TrainConfig(warmup=0.05))["ss_lr_warmup_steps"] == "6"
    assert metadata(TrainConfig(warmup=50))["ss_lr_warmup_steps"] == "50"


def test_noise_and_loss_have_kohyas_keys() -> None:
    config = TrainConfig(
        noise_offset=0.05,
        noise_offset_random_strength=True,
        adaptive_noise_scale=0.01,
        multires_noise_iterations=6,
        multires_noise_discount=0.2,
        ip_noise_gamma=0.1,
        ip_noise_gamma_random_strength=True,
        min_snr_gamma=5.0,
        debiased_estimation=True,
        v_pred_like_loss=0.5,
        loss_type="huber",
        huber_schedule="exponential",
        huber_c=0.2,
        huber_scale=2.0,
        min_timestep=100,
    )
    expected = {
        "ss_noise_offset": "0.05",
        "ss_noise_offset_random_strength": "True",
        "ss_adaptive_noise_scale": "0.01",
        "ss_multires_noise_iterations": "6",
        "ss_multires_noise_discount": "0.2",
        "ss_ip_noise_gamma": "0.1",
        "ss_ip_noise_gamma_random_strength": "True",
        "ss_min_snr_gamma": "5.0",
        "ss_debiased_estimation": "True",
        "ss_scale_v_pred_loss_like_noise_pred": "False",
        "ss_v_pred_like_loss": "0.5",
        "ss_loss_type": "huber",
        "ss_huber_schedule": "exponential",
        "ss_huber_c": "0.2",
        "ss_huber_scale": "2.0",
        "modelspec.timestep_range": "100,1000",
    }
    reported = metadata(config)
    assert {key: reported.get(key) for key in expected} == expected


def test_unused_noise_and_loss_settings_are_none() -> None:
    noise = ("noise_offset", "adaptive_noise_scale", "multires_noise_iterations", "multires_noise_discount")
    others = ("ip_noise_gamma", "v_pred_like_loss", "huber_schedule", "huber_c", "huber_scale")
    reported = metadata()
    assert {reported[f"ss_{key}"] for key in (*noise, *others)} == {"None"}
    assert reported["ss_loss_type"] == "l2"
    assert "modelspec.timestep_range" not in reported


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
def test_the_schedule_has_kohyas_name(schedule: str) -> None:
    assert metadata(TrainConfig(lr_schedule=schedule))["ss_lr_scheduler"] == schedule


def test_convolution_rank_is_present_if_convolutions_are_trained() -> None:
    values = metadata(TrainConfig(targets="all", rank=8, alpha=4.0))
    assert json.loads(values["ss_network_args"]) == {"conv_dim": "8", "conv_alpha": "4.0"}
    assert json.loads(metadata()["ss_network_args"]) == {}


def test_the_model_spec_has_title_date_and_trigger_word() -> None:
    values = metadata()
    assert values["modelspec.title"] == values["ss_output_name"] == "my-lora-000003"
    assert values["modelspec.date"] == "2023-11-14T22:13:20"
    assert values["modelspec.trigger_phrase"] == "zxc"
    assert values["modelspec.resolution"] == "512x512"


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "no"), (torch.float16, "fp16"), (torch.bfloat16, "bf16")])
def test_precision_is_the_one_the_model_ran_in(dtype: torch.dtype, name: str) -> None:
    assert metadata(dtype=dtype)["ss_mixed_precision"] == name


def test_every_parameter_is_stored_and_loads_back() -> None:
    config = TrainConfig(
        rank=8,
        alpha=2.5,
        output_name="ü",
        sample_prompts=("a --d 1", "b"),
        unet_lr=1e-5,
        concepts=(Concept(folder="10_cat", trigger="zxc"), Concept(folder="reg", is_regularisation=True)),
    )
    stored = json.loads(metadata(config)[CONFIG_KEY])
    assert {parameter.name for parameter in parameters_of(TrainConfig)} <= stored.keys()
    again, problems = read_config(stored)
    assert again == config and problems == ()


@pytest.mark.parametrize("folder", ["/home/ann/images/", "C:\\Users\\ann\\images"])
def test_stored_settings_do_not_reveal_folders(folder: str) -> None:
    config = TrainConfig(
        checkpoint=folder + "/x.safetensors", vae=folder, output_dir=folder, concepts=(Concept(folder=folder),)
    )
    stored = shareable_config(config)
    assert "ann" not in json.dumps(stored) and "ann" not in json.dumps(metadata(config))
    assert stored["concepts"][0]["folder"] == "images"
