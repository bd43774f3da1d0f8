"""Settings of kohya's tools become ours: by meaning, in any type, with every key accounted for."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora_train.config.train_config import CONFIG_KEY, Concept, TrainConfig, config_values, read_config
from lib_lora_train.config.validation.validate import validate
from lib_lora_train.core.errors import AdapterError, ConfigError, OutputError
from lib_lora_train.core.safetensors_header import Header
from lib_lora_train.formats.kohya import keys as kohya_keys
from lib_lora_train.formats.kohya.dataset import read_folders
from lib_lora_train.formats.kohya.exporter import to_gui, to_script, write_exported
from lib_lora_train.formats.kohya.import_state import kohya_parameters
from lib_lora_train.formats.kohya.importer import Imported, from_gui, from_metadata, from_script
from lib_lora_train.formats.kohya.network_export import metadata_network
from lib_lora_train.formats.kohya.read_files import read_settings
from lib_lora_train.formats.kohya.report import describe_lost
from lib_lora_train.formats.metadata import shareable_config
from lib_lora_train.formats.toml import write_toml_config
from tests.paths import KOHYA_FILES as FILES


def reasons(imported: Imported) -> dict[str, str]:
    return {ignored.key: ignored.reason for ignored in imported.ignored}


def changed(imported: Imported) -> dict[str, Any]:
    return config_values(imported.config, only_changed=True)


def write_lora(path: Path, metadata: dict[str, str] | None, tensors: tuple[str, ...] = ()) -> Path:
    """A safetensors file with only a header."""
    entries: dict[str, Any] = {name: {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for name in tensors}
    if metadata is not None:
        entries["__metadata__"] = metadata
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


# --- a file of the GUI -----------------------------------------------------------------------------


def test_a_gui_file_is_imported_by_meaning() -> None:
    imported = read_settings(FILES / "gui.json")
    expected = {
        "checkpoint": "/home/mia/models/base.safetensors",
        "clip_skip": 2,
        "resolution": 768,
        "max_bucket": 2048,
        "bucket_no_upscale": True,
        "shuffle_captions": True,
        "caption_dropout": 0.05,
        "epochs": 12,
        "batch_size": 4,
        "gradient_accumulation": 2,
        "text_encoder_lr": 5e-5,
        "optimizer_args": "weight_decay=0.1 betas=0.9,0.99",
        "warmup": 0.05,
        "seed": 1234,
        "precision": "fp16",
        "gradient_checkpointing": True,
        "min_snr_gamma": 5.0,
        "noise_offset": 0.05,
        "alpha": 8.0,
        "targets": "all",
        "output_name": "fox",
        "output_dir": "/home/mia/loras",
        "save_every_n_epochs": 2,
        "save_precision": "bf16",
        "comment": "trigger: zfox",
        "sample_prompts": ["fox on a hill --w 512 --h 768 --l 7 --d 1", "a forest --n fox"],
        "sample_every_n_epochs": 2,
        "concepts": [
            {"folder": "/home/mia/fox/img", "flip": True},
            {"folder": "/home/mia/fox/reg", "flip": True, "is_regularisation": True},
        ],
    }
    assert {name: value for name, value in changed(imported).items() if name in expected} == expected
    assert [problem for problem in validate(imported.config) if problem.level == "error"] == []


def test_exactly_the_lost_settings_of_a_gui_file_are_reported() -> None:
    imported = read_settings(FILES / "gui.json")
    reported = {ignored.key for ignored in imported.ignored if not ignored.is_harmless}
    assert reported == {
        "flip_aug",
        "ip_noise_gamma",
        "lr_scheduler_num_cycles",
        "optimizer_args: percentile_clipping",
        "sample_prompts: --ss",
        "some_future_option",
    } - {*kohya_parameters(), *kohya_keys.FOLDER_SWITCHES}
    assert {problem.where for problem in imported.problems} <= {"optimizer", "lr_schedule", ""}


@pytest.mark.parametrize("file", ["gui.json", "args.toml"])
def test_no_key_of_a_file_is_lost_silently(file: str) -> None:
    imported = read_settings(FILES / file, FILES / "dataset.toml" if file == "args.toml" else None)
    text = (FILES / file).read_text(encoding="utf-8")
    keys = {line.split('"')[1] for line in text.splitlines() if ":" in line and '"' in line}
    if file == "args.toml":
        keys = {line.split(" = ")[0] for line in text.splitlines() if " = " in line}
    accounted = {*imported.used_keys, *(ignored.key.split(":")[0] for ignored in imported.ignored)}
    overruled = {"train_batch_size"} if file == "args.toml" else set()
    assert keys - accounted - overruled == set()


# --- traps -----------------------------------------------------------------------------------------


def gui(**values: Any) -> Imported:
    return from_gui({"network_dim": 16, "network_alpha": 16, "train_batch_size": 2, "keep_tokens": 1, **values})


def test_steps_override_the_guis_epochs_with_a_warning() -> None:
    imported = gui(max_train_steps=1600, epoch=10)
    assert (imported.config.max_steps, imported.config.epochs) == (1600, 10_000)
    assert "epoch 10 is then ignored" in imported.problems[0].message


def test_epochs_override_steps_in_sd_scripts() -> None:
    config = from_script({"max_train_epochs": 7, "max_train_steps": 1600}).config
    assert (config.epochs, config.max_steps) == (7, 0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"max_bucket": 2048, "bucket_no_upscale": True, "max_token_length": 75, "warmup": 0.1, "epochs": 1}),
        ({}, {"rank": 8, "alpha": 1.0, "conv_rank": None, "keep_tokens": 0, "batch_size": 1, "max_steps": 0}),
        ({}, {"keep_tokens_separator": "", "lr_schedule": "cosine", "learning_rate": 1e-4}),
        ({"max_bucket_reso": 1024, "bucket_no_upscale": False}, {"max_bucket": 1024, "bucket_no_upscale": False}),
        ({"lr_scheduler": "constant"}, {"warmup": 0.0}),
        ({"lr_warmup_steps": 50}, {"warmup": 50.0}),
        ({"max_train_steps": 700}, {"max_steps": 700}),
        ({"max_train_epochs": 7}, {"epochs": 7}),
    ],
)
def test_missing_keys_get_the_guis_defaults(values: dict[str, Any], expected: dict[str, Any]) -> None:
    imported = from_gui({"LoRA_type": "Standard", **values})
    assert {name: getattr(imported.config, name) for name in expected} == expected
    assert all(problem.level == "hint" for problem in imported.problems)


def test_missing_keys_get_sd_scripts_defaults() -> None:
    imported = from_script({"output_name": "a", "network_dim": 8})
    config = imported.config
    assert (config.alpha, config.keep_tokens, config.max_steps, config.lr_schedule) == (1.0, 0, 1600, "constant")
    assert "network_alpha 1" in imported.problems[0].message


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"unet_lr": 1e-4, "text_encoder_lr": 0}, (True, False)),
        ({"unet_lr": "0.0001", "text_encoder_lr": ""}, (True, False)),
        ({"unet_lr": 0, "text_encoder_lr": 5e-5}, (False, True)),
        ({"unet_lr": 0, "text_encoder_lr": 0, "learning_rate": 2e-4}, (True, True)),
        ({"unet_lr": 1e-4, "text_encoder_lr": 5e-5}, (True, True)),
    ],
)
def test_a_rate_of_0_turns_a_part_off_in_the_gui(values: dict[str, Any], expected: tuple[bool, bool]) -> None:
    config = gui(**values).config
    assert (config.train_unet, config.train_text_encoder) == expected
    assert 0 not in (config.unet_lr, config.text_encoder_lr)


@pytest.mark.parametrize(
    ("values", "warmup"),
    [
        ({"lr_warmup": 10}, 0.1),
        ({"lr_warmup": "5"}, 0.05),
        ({"lr_warmup": 10, "lr_warmup_steps": 200}, 200.0),
        ({"lr_warmup": 10, "lr_warmup_steps": 0}, 0.1),
        ({"lr_warmup_steps": "10%"}, 0.1),
        ({"lr_warmup_steps": 0.05}, 0.05),
        ({"lr_warmup": 100}, 0.0),
        ({"lr_warmup": 10, "lr_scheduler": "constant"}, 0.0),
        ({"lr_warmup": 10, "lr_scheduler": "constant_with_warmup"}, 0.1),
    ],
)
def test_warmup_is_percent_steps_or_a_fraction(values: dict[str, Any], warmup: float) -> None:
    assert gui(**values).config.warmup == warmup


def test_additional_parameters_override_other_keys() -> None:
    text = (
        '--zero_terminal_snr --v_parameterization --min_snr_gamma=3 --optimizer_args "weight_decay=0.1" betas=0.9,0.99'
    )
    imported = gui(additional_parameters=f"{text} --nowhere 5", min_snr_gamma=5, optimizer="AdamW", optimizer_args="")
    config = imported.config
    assert (config.prediction_type, config.zero_terminal_snr, config.min_snr_gamma) == ("v_prediction", "on", 3.0)
    assert config.optimizer_args == "weight_decay=0.1 betas=0.9,0.99"
    reported = reasons(imported)
    assert "is not a known setting" in reported["additional_parameters: nowhere"]
    assert "takes precedence" in reported["min_snr_gamma"]


@pytest.mark.parametrize("text", ['--comment "open', "loose --flip_aug", "--", "---x=1 =", ""])
def test_unreadable_additional_parameters_are_reported(text: str) -> None:
    imported = gui(additional_parameters=text)
    lost = [ignored for ignored in imported.ignored if ignored.key.startswith("additional_parameters")]
    assert lost


@pytest.mark.parametrize(
    ("given", "decay"), [("10%", 0.1), (0.2, 0.2), ("0.2", 0.2), (200, 200.0), (0, 0.0), (None, 0.0)]
)
def test_decay_is_percent_steps_or_a_fraction_and_0_if_missing(given: Any, decay: float) -> None:
    config = from_script({"lr_scheduler": "warmup_stable_decay", "lr_decay_steps": given}).config
    assert (config.lr_schedule, config.lr_decay) == ("warmup_stable_decay", decay)
    assert to_gui(config).values["additional_parameters"] == (f"--lr_decay_steps={decay:g}" if decay else "")
    assert to_script(config).values.get("lr_decay_steps", 0) == decay


def test_a_decay_as_long_as_the_run_is_rejected() -> None:
    imported = from_script({"lr_scheduler": "warmup_stable_decay", "lr_decay_steps": "100%"})
    assert "below 100%" in reasons(imported)["lr_decay_steps"]


@pytest.mark.parametrize(
    ("values", "ratios"),
    [
        ({"loraplus_lr_ratio": 16}, (16.0, 16.0)),
        ({"loraplus_lr_ratio": 16, "loraplus_text_encoder_lr_ratio": 4}, (16.0, 4.0)),
        ({"loraplus_lr_ratio": 16, "loraplus_unet_lr_ratio": 0}, (16.0, 16.0)),
        ({"loraplus_lr_ratio": 0, "loraplus_unet_lr_ratio": 8}, (8.0, 0.0)),
        ({"network_module": "networks.lora", "network_args": ["loraplus_lr_ratio=2"]}, (2.0, 2.0)),
        ({"loraplus_lr_ratio": 0}, (0.0, 0.0)),
    ],
)
def test_one_loraplus_ratio_is_for_the_parts_without_their_own(
    values: dict[str, Any], ratios: tuple[float, float]
) -> None:
    imported = from_script(values)
    config = imported.config
    assert (config.loraplus_unet_ratio, config.loraplus_text_encoder_ratio) == ratios
    assert [ignored.key for ignored in imported.ignored if not ignored.is_harmless] == []


@pytest.mark.parametrize("kind", ["sigma", "sigmoid", "flux_shift"])
def test_timestep_sampling_of_flux_is_not_ours(kind: str) -> None:
    """The GUI writes it for every model; kohya's tools read it only for Flux and similar models."""
    imported = gui(timestep_sampling=kind, sigmoid_scale=2.0)
    assert imported.config.timestep_sampling == "uniform"
    assert all(ignored.is_harmless for ignored in imported.ignored)


@pytest.mark.parametrize(
    ("values", "alpha"),
    [
        ({"network_dim": 32, "network_alpha": 16}, 16.0),
        ({"network_dim": 32, "network_alpha": 32}, None),
        ({"network_dim": 32, "network_alpha": 0}, None),
        ({"network_dim": 32}, 1.0),
        ({}, 1.0),
        ({"network_dim": 32, "alpha": "8"}, 8.0),
    ],
)
def test_alpha_means_the_same_as_there(values: dict[str, Any], alpha: float | None) -> None:
    assert from_gui({"output_name": "a", **values}).config.alpha == alpha


@pytest.mark.parametrize("value", ["512,512", "512", 512, [512, 512], "(512, 512)", "512x512", 512.0])
def test_a_resolution_is_read_in_every_spelling(value: Any) -> None:
    assert gui(max_resolution=value).config.resolution == 512


@pytest.mark.parametrize(
    ("written", "size"), [("512,768", (512, 768)), ("768x512", (768, 512)), ("512,512", (512, 512)), (640, (640, 640))]
)
def test_a_resolution_keeps_its_width_and_height(written: Any, size: tuple[int, int]) -> None:
    config = gui(max_resolution=written).config
    assert config.resolution_size == size
    assert (config.resolution_height is None) == (size[0] == size[1])
    assert to_gui(config).values["max_resolution"] == "{},{}".format(*size)
    assert from_gui(to_gui(config).values).config.resolution_size == size


@pytest.mark.parametrize(
    ("name", "optimizer", "is_told"),
    [
        ("AdamW", "AdamW", False),
        ("adamw", "AdamW", False),
        ("PRODIGY", "Prodigy", False),
        ("AdamW8bit", "AdamW8bit", False),
        ("PagedAdamW8bit", "AdamW8bit", True),
        ("Lion8bit", "Lion", True),
        ("DAdaptation", "DAdaptAdam", False),
        ("DAdaptAdanIP", "Custom", False),
        ("DAdaptSomething", "DAdaptAdam", True),
        ("AdaFactor", "Adafactor", False),
        ("AdEMAMix8bit", "Custom", False),
        ("Unheard", "AdamW", True),
        ("torch.optim.adamw.AdamW", "AdamW", False),
        ("prodigyopt.prodigy.Prodigy(decouple=True,betas=(0.9, 0.99))", "Prodigy", False),
    ],
)
def test_an_optimizer_is_found_or_replaced_by_the_closest_with_a_warning(
    name: str, optimizer: str, is_told: bool
) -> None:
    imported = gui(optimizer=name)
    assert imported.config.optimizer == optimizer
    assert any(problem.where == "optimizer" for problem in imported.problems) is is_told
    if "(" in name:
        assert imported.config.optimizer_args == "decouple=True betas=(0.9, 0.99)"


def test_noise_values_of_the_other_kind_are_ignored() -> None:
    imported = gui(noise_offset=0.1, multires_noise_iterations=6, noise_offset_type="Multires")
    assert imported.config.noise_offset == 0
    assert "noise_offset_type" in reasons(imported)["noise_offset"]


def test_seed_0_is_random_only_in_the_gui() -> None:
    assert gui(seed=0).config.seed == TrainConfig().seed
    assert "random" in reasons(gui(seed="0"))["seed"]
    assert from_script({"seed": 0}).config.seed == 0


def test_saving_only_at_the_end_is_kept() -> None:
    config = gui(save_every_n_epochs=0, epoch=7).config
    assert config.save_every_n_epochs == config.epochs == 7


@pytest.mark.parametrize(
    ("values", "targets"),
    [
        ({"LoRA_type": "Standard", "conv_dim": 8}, "standard"),
        ({"LoRA_type": "Kohya LoCon", "conv_dim": 16}, "all"),
        ({"LoRA_type": "LyCORIS/LoCon", "LyCORIS_preset": "attn-only"}, "attention"),
        ({"LoRA_type": "LyCORIS/LoCon", "LyCORIS_preset": "attn-mlp"}, "standard"),
        ({"network_module": "networks.lora"}, "standard"),
        ({"network_module": "networks.lora", "network_args": ["conv_dim=16", "conv_alpha=16"]}, "all"),
        ({"network_module": "lycoris.kohya", "network_args": "algo=locon preset=attn-mlp"}, "standard"),
        ({"network_module": "networks.lora", "network_args": '{"conv_dim": "16"}'}, "all"),
    ],
)
def test_the_kind_of_network_determines_the_layers(values: dict[str, Any], targets: str) -> None:
    imported = gui(**values)
    assert imported.config.targets == targets
    assert [ignored.key for ignored in imported.ignored if not ignored.is_harmless] == (
        ["conv_dim"] if values.get("conv_dim") == 8 and targets == "all" else []
    ) or values.get("LoRA_type") == "Standard"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"LoRA_type": "LyCORIS/LoHa", "conv_dim": 4, "conv_alpha": 2}, {"family": "loha", "conv_rank": 4}),
        ({"LoRA_type": "LyCORIS/LoKr", "factor": 4, "decompose_both": True}, {"family": "lokr", "lokr_factor": 4}),
        ({"LoRA_type": "LyCORIS/LoKr", "use_cp": True}, {"family": "lokr", "tucker": True}),
        ({"LoRA_type": "LyCORIS/DyLoRA", "unit": 4}, {"family": "dylora", "dylora_unit": 4}),
        ({"LoRA_type": "Kohya DyLoRA", "unit": 2}, {"family": "dylora", "dylora_unit": 2, "targets": "all"}),
        ({"LoRA_type": "LyCORIS/GLoRA"}, {"family": "glora", "targets": "full"}),
        ({"LoRA_type": "LyCORIS/iA3", "LyCORIS_preset": "ia3"}, {"family": "ia3", "targets": "standard"}),
        ({"LoRA_type": "LyCORIS/iA3", "LyCORIS_preset": "attn-mlp"}, {"family": "ia3", "targets": "all"}),
        ({"LoRA_type": "LyCORIS/Diag-OFT", "constrain": 0.01, "rescaled": True}, {"family": "oft", "rescaled": True}),
        ({"LoRA_type": "LyCORIS/BOFT"}, {"family": "boft", "targets": "full"}),
        ({"LoRA_type": "LyCORIS/Native Fine-Tuning", "train_norm": True}, {"family": "full", "train_norm": True}),
        ({"LoRA_type": "LyCORIS/LoCon", "dora_wd": True, "LyCORIS_preset": "unet-only"}, {"dora": True}),
        (
            {"network_module": "lycoris.kohya", "network_args": ["algo=lokr", "factor=8", "preset=attn-mlp"]},
            {"family": "lokr", "lokr_factor": 8, "targets": "standard"},
        ),
        (
            {"network_module": "lycoris.kohya", "network_args": ["algo=diag-oft", "constraint=0.1"]},
            {"family": "oft", "constraint": 0.1},
        ),
        (
            {"network_module": "networks.dylora", "network_args": ["unit=4"]},
            {"family": "dylora", "targets": "standard"},
        ),
    ],
)
def test_every_network_of_kohyas_tools_is_imported(values: dict[str, Any], expected: dict[str, Any]) -> None:
    imported = gui(**values)
    assert {name: getattr(imported.config, name) for name in expected} == expected
    assert [ignored for ignored in imported.ignored if not ignored.is_harmless] == []


@pytest.mark.parametrize(
    "values",
    [
        {"targets": "all", "conv_rank": 4, "conv_alpha": 1.0},
        {"targets": "full", "dora": True, "tucker": True, "rank_stabilized": True},
        {"targets": "attention", "family": "loha"},
        {"targets": "full", "family": "lokr", "lokr_factor": 8, "full_matrix": True},
        {"family": "dylora", "dylora_unit": 4},
        {"targets": "standard", "family": "ia3"},
        {"targets": "standard", "family": "boft", "constraint": 0.001, "rescaled": True, "train_norm": True},
        {"targets": "full", "family": "full"},
        {"rank_dropout": 0.1, "module_dropout": 0.2, "down_lr_weight": "sine+.25", "block_ranks": ",".join("4" * 25)},
        {"scalar": True},
        {"family": "lokr", "lokr_factor": 4, "scalar": True, "rank_dropout": 0.1},
    ],
)
def test_network_in_a_files_metadata_is_read_back(values: dict[str, Any]) -> None:
    config = TrainConfig(**values)
    module, arguments = metadata_network(config)
    reported = {"ss_network_module": module, "ss_network_args": json.dumps(arguments), "ss_network_dim": "16"}
    again = from_metadata(Header({**reported, "ss_network_alpha": "16.0"}, ())).config
    assert {name: getattr(again, name) for name in values} == values


def test_a_preset_without_text_encoder_switches_it_off() -> None:
    assert gui(LoRA_type="LyCORIS/LoCon", LyCORIS_preset="unet-only").config.train_text_encoder is False


def test_settings_of_another_network_are_ignored() -> None:
    imported = gui(LoRA_type="Standard", dora_wd=True, factor=8, rescaled=True)
    assert (imported.config.dora, imported.config.lokr_factor, imported.config.rescaled) == (False, -1, False)
    assert {"dora_wd", "factor", "rescaled"} <= set(reasons(imported))


def test_an_unsupported_network_is_replaced_with_a_warning() -> None:
    imported = gui(LoRA_type="LyCORIS/Full-TLora", factor=4)
    assert (imported.config.family, imported.config.targets) == ("lora", "full")
    assert "full-tlora is not available" in imported.problems[0].message
    assert "LoRA_type" in {ignored.key for ignored in imported.ignored if not ignored.is_harmless}


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("lr_scheduler", "cosin", "cosine"),
        ("optimizer", "adamw8bits", "AdamW8bit"),
        ("sample_sampler", "eular_a", "Euler a"),
        ("loss_type", "hubber", "huber"),
        ("LoRA_type", "LyCORIS/lokrr", "lokr"),
        ("network_dims", 8, "network_dim"),
        ("epochs", 3, "epoch"),
    ],
)
def test_a_misspelt_key_or_value_of_a_file_gets_a_suggestion(key: str, value: Any, meant: str) -> None:
    imported = from_gui({"LoRA_type": "Standard", key: value})
    texts = [*map(str, imported.problems), *describe_lost(imported.ignored)]
    assert [text for text in texts if f"Did you mean {meant!r}?" in text], texts


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"LoRA_type": "LyCORIS/lokrr"}, "lokrr"),
        ({"LoRA_type": "Flux1"}, "flux1"),
        ({"LoRA_type": "LyCORIS/LoKr", "LyCORIS_preset": "attn-mlpp"}, "attn-mlpp"),
        ({"lr_scheduler_type": "CosineAnnealingLR", "lr_scheduler_args": "T_max=30"}, "CosineAnnealingLR"),
        ({"lr_scheduler_type": "CosineAnnealingLR", "lr_scheduler_args": "T_max=30"}, "T_max=30"),
        ({"lr_scheduler_args": "T_max=30"}, "T_max=30"),
        ({"sample_sampler": "dpm_2"}, "dpm_2"),
        ({"network_dim": "many"}, "many"),
        ({"unet_lr": "fast"}, "fast"),
    ],
)
def test_what_is_not_available_is_reported_once(values: dict[str, Any], word: str) -> None:
    imported = from_gui(values)
    texts = [*map(str, imported.problems), *describe_lost(imported.ignored)]
    assert sum(text.count(word) for text in texts) == 1, texts


def test_a_hugging_face_model_name_is_not_a_file() -> None:
    imported = gui(pretrained_model_name_or_path="someone/some-model")
    assert imported.config.checkpoint == ""
    assert "Select the file" in reasons(imported)["pretrained_model_name_or_path"]


def test_model_switches_are_kept_and_off_leaves_it_to_the_checkpoint() -> None:
    reported = gui(v_parameterization="True", zero_terminal_snr=True)
    assert (reported.config.prediction_type, reported.config.zero_terminal_snr) == ("v_prediction", "on")
    silent = gui(v_parameterization=False, zero_terminal_snr="False")
    assert (silent.config.prediction_type, silent.config.zero_terminal_snr) == ("auto", "auto")
    assert all(ignored.is_harmless for ignored in silent.ignored)
    off = to_gui(TrainConfig(zero_terminal_snr="off"))
    assert off.values["additional_parameters"] == ""
    assert "zero_terminal_snr" not in {ignored.key for ignored in off.lost}  # off is kohya's default


def test_numbers_and_flags_written_as_text_are_read() -> None:
    config = gui(shuffle_caption="True", clip_skip="2", gradient_checkpointing=1, enable_bucket="false").config
    assert (config.shuffle_captions, config.clip_skip, config.gradient_checkpointing) == (True, 2, True)
    assert config.enable_buckets is False


def test_a_class_of_another_package_is_kept_as_it_is() -> None:
    config = gui(optimizer="pytorch_optimizer.AdEMAMix", optimizer_args="weight_decay=0.1 alpha=5.0").config
    assert (config.optimizer, config.custom_optimizer) == ("Custom", "pytorch_optimizer.AdEMAMix")
    assert config.optimizer_args == "weight_decay=0.1 alpha=5.0"
    again = from_gui(to_gui(config).values).config
    assert (again.optimizer, again.custom_optimizer) == ("Custom", "pytorch_optimizer.AdEMAMix")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RAdamScheduleFree", "schedulefree.RAdamScheduleFree"),
        ("SGDScheduleFree", "schedulefree.SGDScheduleFree"),
        ("DAdaptAdaGrad", "dadaptation.DAdaptAdaGrad"),
        ("DAdaptAdanIP", "dadaptation.experimental.DAdaptAdanIP"),
        ("ProdigyPlusScheduleFree", "prodigyplus.ProdigyPlusScheduleFree"),
        ("prodigyplus.ProdigyPlusScheduleFree", "prodigyplus.ProdigyPlusScheduleFree"),
        ("torch.optim.RAdam", "torch.optim.RAdam"),
    ],
)
def test_optimisers_beyond_the_list_are_imported_by_class(name: str, meant: str) -> None:
    config = gui(optimizer=name).config
    assert (config.optimizer, config.custom_optimizer) == ("Custom", meant)


def test_a_class_that_is_not_chosen_is_not_exported() -> None:
    assert to_gui(TrainConfig(custom_optimizer="torch.optim.RAdam")).values["optimizer"] == "AdamW"


def test_adafactor_without_arguments_uses_relative_steps_as_in_sd_scripts() -> None:
    assert gui(optimizer="AdaFactor", lr_scheduler="cosine").config.lr_schedule == "adafactor"
    given = gui(optimizer="AdaFactor", lr_scheduler="constant", optimizer_args="relative_step=False").config
    assert (given.lr_schedule, given.optimizer_args) == ("constant", "relative_step=False")
    fixed = TrainConfig(optimizer="Adafactor", lr_schedule="constant")
    assert to_gui(fixed).values["optimizer_args"] == "scale_parameter=False relative_step=False"
    assert to_script(fixed).values["optimizer_args"] == ["scale_parameter=False", "relative_step=False"]


def test_a_rate_per_text_encoder_is_kept() -> None:
    config = gui(unet_lr=1e-4, text_encoder_lr=[5e-5, 1e-5]).config
    assert (config.text_encoder_lr, config.text_encoder_2_lr) == (5e-5, 1e-5)
    assert gui(unet_lr=1e-4, text_encoder_lr=[5e-5, -1]).config.text_encoder_2_lr is None


def test_a_key_at_its_default_is_harmless_and_another_value_is_not() -> None:
    imported = gui(stop_text_encoder_training="0", save_n_epoch_ratio=0, fused_backward_pass=True)
    quiet = {ignored.key: ignored.is_harmless for ignored in imported.ignored}
    assert quiet["stop_text_encoder_training"]
    assert quiet["save_n_epoch_ratio"]
    assert not quiet["fused_backward_pass"]


# --- whatever stands in a file ---------------------------------------------------------------------

_KEYS = st.sampled_from(
    sorted(
        {
            *kohya_parameters(),
            *kohya_keys.ALIASES,
            *kohya_keys.DEFAULTS,
            *kohya_keys.NOT_NEEDED,
            *kohya_keys.OTHER_NETWORK_DEFAULTS,
            *kohya_keys.FULL_PRECISIONS,
            *("epoch", "lr_warmup", "LoRA_type", "network_module", "network_args", "noise_offset_type"),
            *("train_data_dir", "reg_data_dir", "dataset_config", "use_8bit_adam", "network_train_unet_only"),
        }
    )
) | st.text(min_size=1, max_size=12)
_VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "0", "1", "10%", "true", "None", "auto", "AdamW8bit", "512,512", "Standard", "a=1 b"])
    | st.text(max_size=20)
    | st.lists(st.integers() | st.text(max_size=8), max_size=3)
    | st.dictionaries(st.text(max_size=4), st.integers(), max_size=2)
)


@given(st.dictionaries(_KEYS, _VALUES, max_size=12), st.sampled_from(["gui", "script"]))
def test_any_values_give_a_valid_config_and_every_key_is_accounted_for(values: dict[str, Any], source: str) -> None:
    tables = {key for key, value in values.items() if isinstance(value, dict)} if source == "script" else set()
    imported = (from_gui if source == "gui" else from_script)(values)
    assert read_config(config_values(imported.config)) == (imported.config, ())
    accounted = {*imported.used_keys, *(ignored.key for ignored in imported.ignored)}
    heads = {key.partition(": ")[0] for key in accounted}
    assert {key for key in values if key not in tables} <= accounted | heads


@given(st.dictionaries(st.text(max_size=8).map("ss_".__add__), st.text(max_size=12), max_size=6))
def test_any_metadata_is_read(metadata: dict[str, str]) -> None:
    imported = from_metadata(Header(metadata, ("lora_unet_a.alpha",)))
    assert imported.config.train_text_encoder is False


@given(st.text(max_size=20) | st.integers() | st.floats(), st.integers() | st.floats(allow_nan=False))
def test_a_number_means_the_same_as_its_text(resolution: Any, rank: float) -> None:
    assert gui(network_dim=rank).config == gui(network_dim=str(rank)).config
    gui(max_resolution=resolution)


# --- sd-scripts ------------------------------------------------------------------------------------


def test_arguments_and_dataset_of_sd_scripts_are_joined() -> None:
    imported = read_settings(FILES / "args.toml", FILES / "dataset.toml")
    config = imported.config
    assert config.concepts == (
        Concept(str(FILES / "img" / "tram"), repeats=10, class_word="zram tram", own_keep_tokens=2),
        Concept(str(FILES / "img" / "30_night"), repeats=1, flip=True, own_keep_tokens=1),
        Concept(str(FILES / "reg"), repeats=1, is_regularisation=True, resolutions="768", own_keep_tokens=2),
    )
    assert (config.optimizer, config.lr_schedule, config.warmup) == ("Prodigy", "constant_with_warmup", 0.1)
    assert (config.batch_size, config.resolution, config.keep_tokens, config.shuffle_captions) == (4, 512, 0, True)
    assert (config.precision, config.save_precision, config.seed) == ("fp32", "fp32", 0)
    assert (config.rank, config.alpha, config.text_encoder_lr) == (32, None, 0.5)
    assert config.checkpoint == str(FILES / "models" / "base.safetensors")
    reported = reasons(imported)
    assert "dataset: keep_tokens" not in reported
    assert (config.family, config.dora) == ("loha", True)
    assert not [key for key in reported if key.startswith("network_")]


def test_caption_settings_that_differ_belong_to_their_folders() -> None:
    """Settings that a folder lacks are the general ones; those that all folders share become the run's."""
    subsets = [
        {"image_dir": "a", "shuffle_caption": True, "caption_prefix": "x,", "caption_dropout_rate": 0.1},
        {"image_dir": "b", "shuffle_caption": False, "caption_suffix": ", y", "caption_tag_dropout_rate": 0.2},
    ]
    folders = read_folders({"general": {"keep_tokens": 3}, "datasets": [{"subsets": subsets}]})
    assert folders.concepts == (
        Concept("a", repeats=1, own_shuffle="on", own_prefix="x,", own_caption_dropout=0.1),
        Concept("b", repeats=1, own_shuffle="off", own_suffix=", y", own_tag_dropout=0.2),
    )
    assert folders.ignored == ()
    config = from_script({"caption_dropout_rate": 0.05, "shuffle_caption": True}, folders).config
    assert (config.keep_tokens, config.caption_dropout, config.shuffle_captions) == (3, 0.05, True)


def test_a_dataset_file_alone_gives_the_folders() -> None:
    imported = read_settings(FILES / "dataset.toml")
    assert len(imported.config.concepts) == 3
    assert imported.config.learning_rate == TrainConfig().learning_rate


def test_a_dataset_named_in_the_settings_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "cats"\n', encoding="utf-8")
    (tmp_path / "a.toml").write_text('dataset_config = "d.toml"\nnetwork_dim = 8\n', encoding="utf-8")
    config = read_settings(tmp_path / "a.toml").config
    assert config.concepts == (Concept(str(tmp_path / "cats"), repeats=1),)


def test_prompts_in_a_separate_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("# all\nfox --w 512\n\na tree\n", encoding="utf-8")
    (tmp_path / "a.toml").write_text(
        '[sample]\nsample_prompts = "p.txt"\nsample_sampler = "k_euler_a"\n', encoding="utf-8"
    )
    (tmp_path / "b.toml").write_text('sample_prompts = "gone.txt"\n', encoding="utf-8")
    assert read_settings(tmp_path / "a.toml").config.sample_prompts == ("fox --w 512", "a tree")
    gone = read_settings(tmp_path / "b.toml")
    assert gone.config.sample_prompts == ()
    assert "cannot be read" in reasons(gone)["sample_prompts"]


def test_a_missing_dataset_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('dataset_config = "gone.toml"\nnetwork_dim = 8\n', encoding="utf-8")
    assert "cannot be read" in reasons(read_settings(tmp_path / "a.toml"))["dataset_config"]


@pytest.mark.parametrize("text", ["datasets = 3", "[[datasets]]\nsubsets = 1", "datasets = [1]", "datasets = []"])
def test_an_invalid_dataset_file_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "d.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="dataset file of sd-scripts"):
        read_settings(tmp_path / "d.toml")


# --- LoRA files ------------------------------------------------------------------------------------

_METADATA = {
    "ss_network_module": "networks.lora",
    "ss_network_dim": "32",
    "ss_network_alpha": "16.0",
    "ss_network_args": "{}",
    "ss_learning_rate": "0.0001",
    "ss_unet_lr": "0.0001",
    "ss_text_encoder_lr": "5e-05",
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1)",
    "ss_lr_scheduler": "cosine",
    "ss_lr_warmup_steps": "50",
    "ss_resolution": "(768, 768)",
    "ss_num_epochs": "10",
    "ss_max_train_steps": "1230",
    "ss_batch_size_per_device": "3",
    "ss_seed": "7",
    "ss_clip_skip": "2",
    "ss_max_bucket_reso": "None",
    "ss_flip_aug": "True",
    "ss_min_snr_gamma": "5.0",
    "ss_sd_model_name": "base.safetensors",
    "ss_dataset_dirs": '{"10_fox": {"n_repeats": 10, "img_count": 20}}',
    "ss_tag_frequency": "{}",
    "sshs_model_hash": "00ff",
    "modelspec.title": "fox",
}


def test_the_metadata_of_a_lora_is_imported(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "fox.safetensors", _METADATA, ("lora_unet_x.alpha", "lora_te_text_model_y.alpha"))
    imported = read_settings(path)
    expected = {
        "resolution": 768,
        "clip_skip": 2,
        "batch_size": 3,
        "text_encoder_lr": 5e-5,
        "optimizer_args": "weight_decay=0.1",
        "warmup": 50.0,
        "seed": 7,
        "min_snr_gamma": 5.0,
        "rank": 32,
        "alpha": 16.0,
    }
    assert {name: value for name, value in changed(imported).items() if name in expected} == expected
    reported = {ignored.key for ignored in imported.ignored if not ignored.is_harmless}
    assert reported == {"ss_sd_model_name", "ss_dataset_dirs", "ss_flip_aug"} - {
        f"ss_{name}" for name in kohya_parameters()
    }
    accounted = {*imported.used_keys, *(ignored.key for ignored in imported.ignored)}
    assert _METADATA.keys() <= accounted


def test_the_tensors_show_which_parts_were_trained() -> None:
    config = from_metadata(Header(_METADATA, ("lora_unet_x.alpha",))).config
    assert (config.train_unet, config.train_text_encoder) == (True, False)


def test_several_datasets_in_the_metadata_are_read() -> None:
    reported = json.dumps([{"resolution": [640, 640], "batch_size_per_device": 2, "subsets": [{"keep_tokens": 3}]}])
    config = from_metadata(Header({"ss_network_dim": "8", "ss_datasets": reported}, ())).config
    assert (config.resolution, config.keep_tokens, config.concepts) == (640, 3, ())


def test_our_own_lora_gives_all_settings_but_the_folders(tmp_path: Path) -> None:
    concepts = (Concept("/images/fox", repeats=3, trigger="zfox"),)
    config = TrainConfig(concepts=concepts, rank=4, sample_steps=9, checkpoint="/models/a.safetensors")
    metadata = {CONFIG_KEY: json.dumps(shareable_config(config)), "ss_network_dim": "4"}
    imported = read_settings(write_lora(tmp_path / "fox.safetensors", metadata))
    assert imported.config == config.replace(checkpoint="", concepts=(Concept("", repeats=3, trigger="zfox"),))
    assert {ignored.key for ignored in imported.ignored} == {"checkpoint", "folder"}


def test_entries_of_our_own_lora_that_are_no_folders_are_named(tmp_path: Path) -> None:
    metadata = {CONFIG_KEY: json.dumps({"concepts": [5, {"repeats": 3}, "fox"]}), "ss_network_dim": "4"}
    imported = read_settings(write_lora(tmp_path / "fox.safetensors", metadata))
    assert imported.config.concepts == (Concept("", repeats=3),)
    assert [(ignored.key, ignored.value) for ignored in imported.ignored] == [
        ("concepts[1]", 5),
        ("concepts[3]", "fox"),
    ]


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_a_lora_without_metadata_is_rejected(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    with pytest.raises(AdapterError, match="has no training settings"):
        read_settings(write_lora(tmp_path / "a.safetensors", metadata))


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 16, struct.pack("<Q", 2) + b"[]", b"\x04" + b"\0" * 20])
def test_a_damaged_lora_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(AdapterError, match=r"a\.safetensors is (empty|damaged|not a safetensors file)"):
        read_settings(tmp_path / "a.safetensors")


# --- files that are neither ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x", "is another kind of file. Settings can be imported from a .json"),
        ("a.json", b"{", "is not valid JSON"),
        ("a.json", b"\xff\xfe\x00", "is not UTF-8 text"),
        ("a.json", b"[1]", "is not a table"),
        ("a.json", b'{"a": 1}', "has no settings of kohya's tools"),
        ("a.toml", b"= 3", "is not valid TOML"),
        ("a.toml", b"colour = 3", "has no settings of kohya's tools"),
        ("gone.json", None, "does not exist"),
        ("a.toml", b'{"network_dim": 8}', "contains JSON"),
    ],
)
def test_a_file_without_settings_is_explained(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_settings(tmp_path / name)


def test_our_own_settings_file_is_read_unchanged(tmp_path: Path) -> None:
    config = TrainConfig(concepts=(Concept(str(tmp_path)),), rank=4, max_steps=5)
    write_toml_config(tmp_path / "a.toml", config)
    assert read_settings(tmp_path / "a.toml").config == config


# --- the way back ----------------------------------------------------------------------------------

_FULL = TrainConfig(
    concepts=(Concept("/fox/img"), Concept("/fox/reg", is_regularisation=True)),
    checkpoint="/models/base.safetensors",
    clip_skip=2,
    resolution=768,
    epochs=7,
    batch_size=3,
    learning_rate=3e-4,
    text_encoder_lr=5e-5,
    optimizer_args="weight_decay=0.1 betas=0.9,0.99",
    lr_schedule="constant_with_warmup",
    warmup=0.07,
    precision="bf16",
    min_snr_gamma=5.0,
    noise_offset=0.04,
    rank=24,
    alpha=12.0,
    targets="all",
    output_name="fox",
    save_precision="fp32",
    comment="a note",
    sample_prompts=("fox --w 512 --n bad", "a tree"),
    sample_sampler="Euler",
    caption_lines="first",
    missing_captions="folder name",
    keep_tokens_separator="",
)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"train_text_encoder": False, "text_encoder_lr": None},
        {"train_unet": False, "text_encoder_lr": None},
        {"unet_lr": 2e-4},
        {"optimizer": "Prodigy", "optimizer_args": "decouple=True", "learning_rate": 1.0},
        {"max_steps": 500, "epochs": 10_000},
        {"lr_schedule": "cosine", "warmup": 200.0},
        {"lr_schedule": "cosine", "warmup": 0.0},
        {"targets": "standard", "alpha": None},
        {"targets": "attention", "precision": "fp32"},
        {"sample_sampler": "Euler a", "max_grad_norm": 0.0, "seed": 5},
        {"conv_rank": 8, "conv_alpha": 4.0},
        {"targets": "full", "dora": True, "tucker": True},
        {"targets": "attention", "family": "loha", "dora": True},
        {"targets": "full", "family": "lokr", "lokr_factor": 8, "decompose_both": True, "train_norm": True},
        {"family": "dylora", "dylora_unit": 4},
        {"targets": "standard", "family": "glora"},
        {"targets": "standard", "family": "ia3"},
        {"targets": "full", "family": "oft", "constraint": 0.01, "rescaled": True},
        {"targets": "full", "family": "boft", "conv_rank": 8},
        {"targets": "full", "family": "full", "train_norm": True},
        {"lora_precision": "bf16"},
        {"prediction_type": "v_prediction", "zero_terminal_snr": "on"},
        {"lora_precision": "fp16", "precision": "fp16"},
    ],
)
def test_exported_settings_are_imported_equal(values: dict[str, Any]) -> None:
    config = _FULL.replace(**values)
    exported = to_gui(config)
    assert exported.lost == ()
    again = from_gui(json.loads(json.dumps(exported.values)))
    assert again.config == config
    assert [ignored for ignored in again.ignored if not ignored.is_harmless] == []


_DRAWN = st.fixed_dictionaries(
    {
        "rank": st.integers(1, 128),
        "alpha": st.none() | st.integers(1, 128).map(float),
        "learning_rate": st.floats(1e-6, 1),
        "epochs": st.integers(1, 500),
        "batch_size": st.integers(1, 32),
        "warmup": st.integers(0, 99).map(lambda percent: percent / 100) | st.integers(1, 900).map(float),
        "seed": st.integers(1, 2**32 - 1),
        "keep_tokens": st.integers(0, 9),
        "shuffle_captions": st.booleans(),
        "train_text_encoder": st.booleans(),
        "lr_schedule": st.sampled_from(["cosine", "constant_with_warmup", "linear", "polynomial"]),
        "targets": st.sampled_from(["attention", "standard", "all"]),
        "min_snr_gamma": st.floats(0, 20),
        "save_every_n_epochs": st.integers(1, 20),
        "precision": st.sampled_from(["fp16", "bf16", "fp32"]),
    }
)


@given(_DRAWN)
def test_all_settings_that_the_gui_has_are_imported_equal(values: dict[str, Any]) -> None:
    if values["alpha"] == values["rank"]:
        values["alpha"] = None
    as_there: dict[str, Any] = {
        "caption_lines": "first",
        "missing_captions": "folder name",
        "keep_tokens_separator": "",
    }
    config = TrainConfig(**values, **as_there)
    assert to_gui(config).lost == ()
    assert from_gui(to_gui(config).values).config == config


def test_the_last_steps_to_keep_become_a_number_of_files() -> None:
    config = gui(save_every_n_steps=100, save_last_n_steps=250, save_last_n_epochs=3).config
    assert (config.save_every_n_steps, config.keep_last_step_files, config.keep_last_epochs) == (100, 3, 3)


def test_save_state_off_in_a_file_does_not_turn_ours_off() -> None:
    assert gui(save_state=False).config.save_state


def test_settings_that_the_gui_cannot_hold_are_listed() -> None:
    concepts = (Concept("/fox", repeats=4, trigger="zfox"), Concept("/more"))
    config = _FULL.replace(concepts=concepts, make_grid=False, precision="auto", seed=0, max_steps=9)
    exported = to_gui(config)
    lost = {ignored.key for ignored in exported.lost}
    assert lost == {"make_grid", "precision", "seed", "epochs", "concepts[1].trigger"}
    (dataset,) = exported.dataset["datasets"]
    assert [(one["image_dir"], one["num_repeats"]) for one in dataset["subsets"]] == [("/fox", 4), ("/more", 1)]


def test_an_exported_file_is_read_again(tmp_path: Path) -> None:
    write_exported(tmp_path / "fox.json", _FULL, "kohya_ss")
    assert read_settings(tmp_path / "fox.json").config == _FULL
    assert [path.name for path in tmp_path.iterdir()] == ["fox.json"]
    with pytest.raises(OutputError, match="cannot be written"):
        write_exported(tmp_path / "none" / "fox.json", _FULL, "kohya_ss")


def test_sd_scripts_wildcards_also_pick_random_lines() -> None:
    config = gui(enable_wildcard=True, weighted_captions=True, keep_tokens_separator="|||", caption_prefix="p,").config
    assert (config.caption_wildcards, config.caption_lines) == (True, "random")
    assert (config.weighted_captions, config.keep_tokens_separator, config.caption_prefix) == (True, "|||", "p,")
    assert gui(enable_wildcard=False).config.caption_lines == gui().config.caption_lines == "first"


def test_sd_scripts_captions_have_75_tokens_by_default() -> None:
    assert from_script({"output_name": "a"}).config.max_token_length == 75
    assert from_script({"max_token_length": "150"}).config.max_token_length == 150


def test_switches_for_all_images_go_to_every_folder() -> None:
    switches = {"flip_aug": True, "color_aug": "true", "random_crop": 1, "masked_loss": True}
    imported = gui(train_data_dir="img", reg_data_dir="reg", **switches)
    assert {(c.flip, c.colour_jitter, c.random_crop, c.use_masks) for c in imported.config.concepts} == {
        (True, 0.1, True, True)
    }
    assert set(switches) <= set(imported.used_keys)
    homeless = gui(**switches)
    assert all("is a setting of the folder" in reasons(homeless)[name] for name in switches)
    off = gui(train_data_dir="img", **dict.fromkeys(switches, False))
    assert off.config.concepts == (Concept("img"),)
    assert all(ignored.is_harmless for ignored in off.ignored if ignored.key in switches)


def test_switches_are_exported_and_imported() -> None:
    concept = Concept("/img", flip=True, colour_jitter=0.1, use_masks=True)
    config = TrainConfig(concepts=(concept,))
    exported = to_gui(config)
    switches = ("flip_aug", "random_crop", "color_aug", "masked_loss")
    assert [exported.values[name] for name in switches] == [True, False, True, True]
    assert exported.values["additional_parameters"] == "--alpha_mask"
    assert from_gui(exported.values).config.concepts == (concept,)


def test_a_dataset_file_sets_switches_per_folder() -> None:
    folders = read_folders(
        {
            "general": {"color_aug": True, "shuffle_caption": True},
            "datasets": [
                {
                    "subsets": [
                        {"image_dir": "a", "flip_aug": True, "alpha_mask": True},
                        {"image_dir": "b", "color_aug": False, "random_crop": True},
                    ]
                }
            ],
        }
    )
    assert folders.concepts == (
        Concept("a", repeats=1, flip=True, use_masks=True, colour_jitter=0.1),
        Concept("b", repeats=1, random_crop=True),
    )
    assert folders.ignored == ()
