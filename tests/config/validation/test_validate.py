"""All problems of a config are reported together, each at the right setting and level."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora_train.config.optimizer_args import parse_optimizer_args
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.config.validation.validate import require_usable, validate
from lib_lora_train.core.errors import ConfigError, Problem

CATS = Concept("cats")
GOOD = TrainConfig(concepts=(CATS,), sample_prompts=("a cat --w 512 --h 768 --d 1 --s 20 --l 7.5 --n bad, worse",))
PRODIGY = {"optimizer": "Prodigy", "learning_rate": 1.0}


def _found(**values: Any) -> set[tuple[str, str]]:
    return {(p.level, p.where) for p in validate(GOOD.replace(**values))}


def _messages(**values: Any) -> str:
    return "\n".join(p.message for p in validate(GOOD.replace(**values)))


def test_a_good_config_has_no_problems() -> None:
    assert validate(GOOD) == ()
    assert validate(GOOD.replace(**PRODIGY, optimizer_args="decouple=True d_coef=0.8 betas=0.9,0.99")) == ()
    assert validate(GOOD.replace(resolution=128, min_bucket=64)) == ()


@pytest.mark.parametrize(
    ("values", "finding"),
    [
        ({"lora_precision": "bf16", "rank": 16}, ("hint", "lora_precision")),
        # data
        ({"concepts": ()}, ("error", "concepts")),
        ({"concepts": (Concept("reg", is_regularisation=True),)}, ("error", "concepts")),
        ({"concepts": (CATS, Concept(""))}, ("error", "concepts[2].folder")),
        ({"concepts": (CATS, Concept("cats/"))}, ("warning", "concepts[2].folder")),
        ({"concepts": (CATS, Concept("r", trigger="x", is_regularisation=True))}, ("hint", "concepts[2].trigger")),
        ({"concepts": (Concept("a", only_class_word=True),)}, ("warning", "concepts[1].only_class_word")),
        ({"concepts": (Concept("a", augment_variants=3),)}, ("hint", "concepts[1].augment_variants")),
        ({"concepts": (Concept("a", own_tag_dropout=0.6),)}, ("warning", "concepts[1].own_tag_dropout")),
        ({"concepts": (Concept("a", own_prefix="x, ", trigger="x"),)}, ("warning", "concepts[1].own_prefix")),
        ({"concepts": (Concept("a", colour_jitter=0.4),)}, ("warning", "concepts[1].colour_jitter")),
        ({"concepts": (Concept("a", alpha_background="#12"),)}, ("error", "concepts[1].alpha_background")),
        (
            {"concepts": (Concept("a", alpha_background="white, #123456", tag_background=True),)},
            ("hint", "concepts[1].tag_background"),
        ),
        (
            {"concepts": (CATS, Concept("r", is_regularisation=True, use_masks=True))},
            ("warning", "concepts[2].use_masks"),
        ),
        ({"concepts": (Concept("a", resolutions="512 big"),)}, ("error", "concepts[1].resolutions")),
        ({"concepts": (Concept("a", resolutions="500"),)}, ("warning", "concepts[1].resolutions")),
        (
            {"concepts": (Concept("a", resolutions="500"),), "enable_buckets": False},
            ("error", "concepts[1].resolutions"),
        ),
        # captions
        ({"max_token_length": 100}, ("error", "max_token_length")),
        ({"keep_tokens_separator": ","}, ("warning", "keep_tokens_separator")),
        ({"caption_prefix": "zorp", "concepts": (Concept("a", trigger="zorp"),)}, ("warning", "caption_prefix")),
        ({"tag_dropout": 0.5}, ("warning", "tag_dropout")),
        ({"caption_dropout_every_n_epochs": 1}, ("warning", "caption_dropout_every_n_epochs")),
        ({"caption_dropout_every_n_epochs": 2}, ("warning", "caption_dropout_every_n_epochs")),
        ({"caption_dropout_every_n_epochs": 50}, ("hint", "caption_dropout_every_n_epochs")),
        ({"drop_trigger": True}, ("hint", "drop_trigger")),
        (
            {"drop_trigger": True, "tag_dropout": 0.1, "concepts": (Concept("a", trigger="zorp"),)},
            ("warning", "drop_trigger"),
        ),
        ({"caption_extension": ""}, ("error", "caption_extension")),
        ({"caption_extension": "../txt"}, ("error", "caption_extension")),
        ({"keep_tokens": 2}, ("hint", "keep_tokens")),
        ({"keep_tokens": 0, "shuffle_captions": True}, ("hint", "keep_tokens")),
        ({"caption_dropout": 1.0}, ("warning", "caption_dropout")),
        ({"caption_dropout": 0.5}, ("warning", "caption_dropout")),
        ({"caption_dropout": 0.1, "concepts": (Concept("a", trigger="cat"),)}, ("hint", "caption_dropout")),
        # buckets
        ({"min_bucket": 1088, "max_bucket": 1024, "resolution": 2048}, ("error", "min_bucket")),
        ({"resolution": 128}, ("error", "min_bucket")),
        ({"resolution": 2048}, ("error", "max_bucket")),
        ({"resolution": 500}, ("warning", "resolution")),
        ({"resolution": 500, "enable_buckets": False}, ("error", "resolution")),
        ({"resolution": 64, "bucket_step": 128}, ("error", "resolution")),
        ({"min_bucket": 300}, ("error", "min_bucket")),
        ({"max_bucket": 1000}, ("error", "max_bucket")),
        ({"bucket_step": 12}, ("error", "bucket_step")),
        ({"bucket_no_upscale": True, "enable_buckets": False}, ("hint", "bucket_no_upscale")),
        # what is trained, and how fast
        ({"train_unet": False, "train_text_encoder": False}, ("error", "train_unet")),
        ({"learning_rate": 0.0}, ("error", "learning_rate")),
        ({"text_encoder_lr": 0.0}, ("warning", "text_encoder_lr")),
        ({"unet_lr": 1e-4, "train_unet": False}, ("hint", "unet_lr")),
        ({"text_encoder_lr": 1e-5, "train_text_encoder": False}, ("hint", "text_encoder_lr")),
        ({"text_encoder_lr": 2e-4}, ("warning", "text_encoder_lr")),
        ({"learning_rate": 1e-3}, ("warning", "learning_rate")),
        ({"optimizer": "Prodigy"}, ("warning", "learning_rate")),
        ({**PRODIGY, "text_encoder_lr": 0.5}, ("hint", "text_encoder_lr")),
        ({**PRODIGY, "warmup": 0.05}, ("warning", "warmup")),
        ({"warmup": 100.0, "max_steps": 100}, ("warning", "warmup")),
        ({"save_every_n_epochs": 20}, ("hint", "save_every_n_epochs")),
        ({"noise_offset": 0.5}, ("warning", "noise_offset")),
        ({"min_snr_gamma": 0.5}, ("warning", "min_snr_gamma")),
        # prior preservation
        ({"prior_preservation": "class"}, ("error", "prior_preservation")),
        ({"prior_preservation": "class", "concepts": (Concept("a", trigger="cat"),)}, ("hint", "prior_preservation")),
        ({"prior_preservation": "prompts"}, ("error", "prior_preservation_prompts")),
        (
            {
                "prior_preservation": "prompts",
                "prior_preservation_prompts": ("a cat", "zorp, red"),
                "concepts": (Concept("a", trigger="zorp"),),
            },
            ("warning", "prior_preservation_prompts"),
        ),
        ({"prior_preservation_prompts": ("a cat",)}, ("hint", "prior_preservation_prompts")),
        ({"prior_preservation": "empty", "prior_preservation_weight": 0.0}, ("hint", "prior_preservation_weight")),
        ({"prior_preservation_weight": 2.0}, ("hint", "prior_preservation_weight")),
        ({"masked_prior_preservation_weight": 1.0}, ("hint", "masked_prior_preservation_weight")),
        # learning-rate schedule
        ({"lr_schedule": "constant", "warmup": 0.1}, ("hint", "warmup")),
        ({"lr_schedule": "constant_with_warmup"}, ("hint", "lr_schedule")),
        ({"lr_schedule": "cosine_with_restarts"}, ("hint", "lr_schedule")),
        ({"lr_schedule": "inverse_sqrt"}, ("hint", "lr_timescale")),
        ({"lr_schedule": "linear", "lr_decay": 0.2}, ("hint", "lr_decay")),
        ({"lr_cycles": 3}, ("hint", "lr_cycles")),
        ({"lr_power": 2.0}, ("hint", "lr_power")),
        ({"lr_timescale": 100}, ("hint", "lr_timescale")),
        ({"lr_min_ratio": 0.1}, ("hint", "lr_min_ratio")),
        ({"lr_schedule": "cosine_with_min_lr"}, ("warning", "lr_min_ratio")),
        ({"lr_schedule": "polynomial", "lr_min_ratio": 1.0}, ("warning", "lr_min_ratio")),
        ({"lr_schedule": "warmup_stable_decay", "lr_decay": 0.0}, ("warning", "lr_decay")),
        ({"lr_schedule": "warmup_stable_decay", "lr_decay": 0.6, "warmup": 0.5}, ("warning", "lr_decay")),
        # noise and timesteps
        ({"noise_offset_random_strength": True}, ("hint", "noise_offset_random_strength")),
        ({"noise_offset": 0.4, "noise_offset_random_strength": True}, ("warning", "noise_offset")),
        ({"adaptive_noise_scale": -0.1}, ("warning", "adaptive_noise_scale")),
        ({"adaptive_noise_scale": 0.5}, ("warning", "adaptive_noise_scale")),
        ({"multires_noise_discount": 0.1}, ("hint", "multires_noise_discount")),
        ({"multires_noise_iterations": 6, "noise_offset": 0.05}, ("warning", "multires_noise_iterations")),
        (
            {"multires_noise_iterations": 6, "multires_noise_discount": 0.9},
            ("warning", "multires_noise_discount"),
        ),
        ({"ip_noise_gamma_random_strength": True}, ("hint", "ip_noise_gamma_random_strength")),
        ({"ip_noise_gamma": 0.5}, ("warning", "ip_noise_gamma")),
        ({"min_timestep": 500, "max_timestep": 500}, ("error", "min_timestep")),
        ({"min_timestep": 450, "max_timestep": 500}, ("warning", "min_timestep")),
        ({"sigmoid_scale": 0.5}, ("hint", "sigmoid_scale")),
        ({"sigmoid_mean": 0.5}, ("hint", "sigmoid_mean")),
        # loss
        ({"zero_terminal_snr": "on", "prediction_type": "epsilon"}, ("warning", "zero_terminal_snr")),
        ({"huber_c": 0.2}, ("hint", "huber_c")),
        ({"loss_type": "huber", "huber_scale": 2.0}, ("hint", "huber_scale")),
        ({"loss_type": "l1", "huber_schedule": "constant"}, ("hint", "huber_schedule")),
        ({"min_snr_gamma": 5.0, "debiased_estimation": True}, ("warning", "debiased_estimation")),
        ({"scale_v_pred_loss_like_noise_pred": True, "v_pred_like_loss": 1.0}, ("error", "v_pred_like_loss")),
        (
            {"scale_v_pred_loss_like_noise_pred": True, "min_snr_gamma": 5.0},
            ("warning", "scale_v_pred_loss_like_noise_pred"),
        ),
        (
            {"scale_v_pred_loss_like_noise_pred": True, "debiased_estimation": True},
            ("warning", "scale_v_pred_loss_like_noise_pred"),
        ),
        ({"v_pred_like_loss": 0.5, "min_snr_gamma": 5.0}, ("hint", "v_pred_like_loss")),
        ({"rank": 8, "alpha": 16.0}, ("warning", "alpha")),
        ({"rank": 128, "alpha": 1.0}, ("warning", "alpha")),
        # optimiser arguments
        ({"optimizer_args": "weight_decay"}, ("error", "optimizer_args")),
        ({"optimizer_args": "d_coef=0.8"}, ("error", "optimizer_args")),
        ({"optimizer_args": "lr=1"}, ("error", "optimizer_args")),
        ({"optimizer_args": "betas=0.9"}, ("error", "optimizer_args")),
        ({"optimizer_args": "betas=0.9,1.5"}, ("error", "optimizer_args")),
        ({"optimizer_args": "weight_decay=1,2"}, ("error", "optimizer_args")),
        # samples
        ({"sample_prompts": ()}, ("hint", "sample_prompts")),
        ({"sample_prompts": ("a", "b --x 3")}, ("error", "sample_prompts[2]")),
        ({"sample_prompts": ("a --w wide",)}, ("error", "sample_prompts[1]")),
        ({"sample_prompts": ("a --w",)}, ("error", "sample_prompts[1]")),
        ({"sample_prompts": ("a --w 500",)}, ("error", "sample_prompts[1]")),
        ({"sample_prompts": ("a --s 0",)}, ("error", "sample_prompts[1]")),
        ({"sample_prompts": ("a --l nan",)}, ("error", "sample_prompts[1]")),
        ({"concepts": (Concept("a", trigger="zorp"),)}, ("hint", "sample_prompts")),
    ],
)
def test_a_problematic_combination_is_reported_at_its_setting(values: dict[str, Any], finding: tuple[str, str]) -> None:
    assert finding in _found(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"lr_schedule": "constant_with_warmup", "warmup": 0.05},
        {"lr_schedule": "linear"},
        {"lr_schedule": "cosine_with_restarts", "lr_cycles": 3},
        {"lr_schedule": "cosine_with_min_lr", "lr_min_ratio": 0.1},
        {"lr_schedule": "polynomial", "lr_power": 2.0},
        {"lr_schedule": "inverse_sqrt", "warmup": 50.0},
        {"lr_schedule": "warmup_stable_decay", "warmup": 0.05, "lr_decay": 0.2},
        {"noise_offset": 0.2, "noise_offset_random_strength": True},
        {"noise_offset": 0.05, "adaptive_noise_scale": -0.01},
        {"multires_noise_iterations": 8, "multires_noise_discount": 0.2},
        {"ip_noise_gamma": 0.1, "ip_noise_gamma_random_strength": True},
        {"min_timestep": 500},
        {"timestep_sampling": "sigmoid", "sigmoid_scale": 0.8, "sigmoid_mean": 0.3},
        {"loss_type": "huber", "huber_c": 0.2, "huber_schedule": "exponential", "min_snr_gamma": 5.0},
        {"debiased_estimation": True},
        {"scale_v_pred_loss_like_noise_pred": True},
        {"v_pred_like_loss": 0.5},
    ],
)
def test_usual_noise_loss_and_schedule_settings_have_no_problems(values: dict[str, Any]) -> None:
    assert validate(GOOD.replace(**values)) == ()


@pytest.mark.parametrize(
    "values",
    [
        {"resolution": 2048, "max_bucket": 1024, "bucket_no_upscale": True},  # no_upscale ignores the limits
        {"resolution": 128, "enable_buckets": False},
        {**PRODIGY, "warmup": 0.05, "optimizer_args": "safeguard_warmup=True"},
        {"learning_rate": 1e-3, "rank": 32, "alpha": 1.0},  # a small alpha needs a larger rate
        {"sample_prompts": ("a cat -- really, a well-known cat",)},
        {"sample_prompts": ("a cat",), "concepts": (Concept("a", trigger="Cat"),)},
    ],
)
def test_working_combinations_get_no_error_or_warning(values: dict[str, Any]) -> None:
    assert {level for level, _ in _found(**values)} <= {"hint"}


@pytest.mark.parametrize(
    "name",
    [
        *("", "a/b", "a\\b", "..", "../a", "/abs", "C:\\x", "a:b", "what?", "a*", "a\nb", "tab\t"),
        *("NUL", "com1.x", "a.", ".a", "a ", "x.safetensors", "ä" * 101),
    ],
)
def test_output_names_with_path_parts_or_forbidden_characters_are_refused(name: str) -> None:
    assert ("error", "output_name") in _found(output_name=name)


@pytest.mark.parametrize("name", ["my-lora", "zorp v1.5", "猫 (final)", "CONcept", "a.b"])
def test_ordinary_output_names_are_allowed(name: str) -> None:
    assert validate(GOOD.replace(output_name=name)) == ()


def test_the_nearest_valid_size_is_suggested() -> None:
    assert "840 is not a multiple of bucket_step 64. Nearest: 832 or 896." in _messages(max_bucket=840)


def test_a_misspelt_optimiser_argument_gets_a_suggestion() -> None:
    assert "AdamW has no argument weight_decai. Did you mean 'weight_decay'?" in _messages(
        optimizer_args="weight_decai=0"
    )


def test_all_errors_are_raised_together_without_warnings() -> None:
    problems = validate(
        GOOD.replace(output_name="a/b", concepts=(), train_unet=False, train_text_encoder=False, rank=8, alpha=9.0)
    )
    with pytest.raises(ConfigError) as caught:
        require_usable(problems)
    assert {p.where for p in caught.value.problems} == {"output_name", "concepts", "train_unet"}
    assert "3 settings cannot be used" in str(caught.value)


def test_warnings_and_hints_do_not_stop_a_run() -> None:
    require_usable([Problem("warning", "a", "b"), Problem("hint", "c", "d")])
    require_usable(())


def test_errors_come_first() -> None:
    levels = [p.level for p in validate(GOOD.replace(keep_tokens=3, noise_offset=0.9, output_name=""))]
    assert levels == ["error", "warning", "hint"]


# --- optimiser arguments ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", {}),
        ("weight_decay=0.01", {"weight_decay": 0.01}),
        ("decouple=True betas=0.9,0.99", {"decouple": True, "betas": (0.9, 0.99)}),
        ("betas=(0.9, 0.99) eps = 1e-8", {"betas": (0.9, 0.99), "eps": 1e-8}),
        ("betas=[0.9, 0.99]", {"betas": (0.9, 0.99)}),
        ('"decouple=true" "d0=1e-6"', {"decouple": True, "d0": 1e-6}),
        ("a=1, b=-2,\nc=none", {"a": 1, "b": -2, "c": None}),
    ],
)
def test_optimizer_args_are_read_as_the_guides_write_them(text: str, arguments: dict[str, Any]) -> None:
    assert parse_optimizer_args(text) == arguments


def test_every_unreadable_argument_is_reported() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_optimizer_args("junk a= b=__import__('os') c=1 c=2")
    assert len(caught.value.problems) == 4


@given(st.text(alphabet="ab=,. ()[]0159e-'\"{}_\n", max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse_optimizer_args(text)
    except ConfigError as error:
        assert error.problems
