"""OneTrainer's settings (.json presets and configurations) as ours.

Missing keys have OneTrainer's defaults, not ours. Its keys that are not imported are in `Imported.ignored`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from lib_lora_train.config.optimizer_catalog import OPTIMIZER_CATALOG
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import ConfigError, Problem
from lib_lora_train.formats.kohya.import_state import REPLACED, IgnoredKey, parse_sides
from lib_lora_train.formats.kohya.importer import Imported, clear_redundant_values
from lib_lora_train.formats.onetrainer.concepts import is_concepts, read_concepts
from lib_lora_train.formats.onetrainer.network import import_network
from lib_lora_train.formats.onetrainer.reading import Reading
from lib_lora_train.formats.text_file import read_text_file

_MODELS = ("STABLE_DIFFUSION_15", "STABLE_DIFFUSION_2", "STABLE_DIFFUSION_XL", "ANIMA")
_PRECISIONS = {"FLOAT_32": "fp32", "TFLOAT_32": "fp32", "FLOAT_16": "fp16", "BFLOAT_16": "bf16"}
_SCHEDULES = {
    "CONSTANT": "constant",
    "LINEAR": "linear",
    "COSINE": "cosine",
    "COSINE_WITH_HARD_RESTARTS": "cosine_with_restarts",
    "ADAFACTOR": "adafactor",
}
_CLOSEST = {"COSINE_WITH_RESTARTS": "cosine_with_restarts", "REX": "polynomial"}
_OPTIMIZERS = {
    "ADAMW": "AdamW",
    "ADAMW_8BIT": "AdamW8bit",
    "PRODIGY": "Prodigy",
    "ADAFACTOR": "Adafactor",
    "LION": "Lion",
    "DADAPT_ADAM": "DAdaptAdam",
    "DADAPT_ADAN": "DAdaptAdan",
    "DADAPT_LION": "DAdaptLion",
    "DADAPT_SGD": "DAdaptSGD",
    "SCHEDULE_FREE_ADAMW": "AdamWScheduleFree",
    "CAME": "CAME",
}
_OWN_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "Prodigy": {"weight_decay": 0, "decouple": True, "slice_p": 11},
    "Adafactor": {"scale_parameter": False, "relative_step": False, "warmup_init": False},
}
"""OneTrainer's defaults of an optimiser that differ from those of its package."""
_CHECKPOINT_ENDINGS = (".safetensors", ".ckpt")


def is_onetrainer(values: Any) -> bool:
    """Whether these are settings or concepts of OneTrainer."""
    return is_concepts(values) or (isinstance(values, Mapping) and {"training_method", "model_type"} <= values.keys())


def from_onetrainer(values: Any, base: Path) -> Imported:
    """The settings; concepts and samples in separate files are looked for from the folder `base` upwards.

    ConfigError for settings that train another model, or no LoRA.
    """
    if is_concepts(values):
        concepts, lost, separator = read_concepts(values)
        config = _with_lines(TrainConfig(concepts=concepts), separator)
        return Imported(config, lost, (), tuple(f"concepts[{n}]" for n in range(1, len(concepts) + 1)))
    _refuse(values)
    reading = Reading(values)
    reading.pop("training_method")
    concepts, lost = _import_concepts(reading, base)
    _model(reading)
    _images(reading)
    _rates(reading)
    _schedule(reading)
    _optimizer(reading)
    _loss(reading)
    _noise(reading)
    import_network(reading)
    _output(reading)
    _samples(reading, base)
    concepts = tuple(map(_masked, concepts)) if _masks(reading) else concepts
    reading.ignore_rest()
    config = clear_redundant_values(TrainConfig(concepts=concepts, **reading.values))
    problems = sorted(reading.problems, key=lambda problem: problem.level == "hint")
    return Imported(config, (*reading.ignored, *lost), tuple(problems), tuple(reading.used))


def _refuse(values: Mapping[str, Any]) -> None:
    method, model = str(values["training_method"]), str(values["model_type"])
    if method != "LORA":
        raise ConfigError(
            [Problem("error", "training_method", f"is {method}: only settings for LORA can be imported.")]
        )
    is_other = model.endswith(("INPAINTING", "DEPTH")) or not model.startswith(_MODELS)
    if is_other or model.startswith("STABLE_DIFFUSION_3"):
        text = f"is {model}. Only settings for SD1, SD2, SDXL and Anima can be imported."
        raise ConfigError([Problem("error", "model_type", text)])


def _with_lines(config: TrainConfig, separator: str = "") -> TrainConfig:
    """With OneTrainer's captions: one of the lines of a file is drawn each time."""
    return config.replace(caption_lines="random", **({"caption_separator": separator} if separator else {}))


def _import_concepts(reading: Reading, base: Path) -> tuple[tuple[Concept, ...], tuple[IgnoredKey, ...]]:
    tables, named = reading.pop("concepts"), reading.pop("concept_file_name")
    if not tables and named:
        tables = _beside(base, str(named))
        if tables is None:
            reading.ignore("concept_file_name", named, "cannot be read. Add the folders yourself, or import that file")
    concepts, lost, separator = read_concepts(tables if isinstance(tables, list) else ())
    reading.values["caption_lines"] = "random"
    if separator:
        reading.values["caption_separator"] = separator
    return concepts, lost


def _beside(base: Path, name: str) -> Any:
    """The list in a .json file, whose name is relative to OneTrainer's folder above the settings; None if not found."""
    for folder in (base, *base.parents[:2]):
        path = folder / name
        if path.is_file():
            try:
                return json.loads(read_text_file(path, ".json"))
            except (ConfigError, ValueError, RecursionError):
                return None
    return None


def _model(reading: Reading) -> None:
    for ours, name in (("checkpoint", "base_model_name"), ("vae", "vae.model_name")):
        given = reading.pop(name)
        if given and str(given).lower().endswith(_CHECKPOINT_ENDINGS):
            reading.set(ours, name, given)
        elif given:
            reading.ignore(name, given, "is not a checkpoint file (.safetensors, .ckpt). Select the file yourself")
    for name, value in (("force_v_prediction", "v_prediction"), ("force_epsilon_prediction", "epsilon")):
        if reading.pop(name, False):
            reading.values["prediction_type"] = value
    if reading.pop("rescale_noise_scheduler_to_zero_terminal_snr", False):
        reading.values["zero_terminal_snr"] = "on"
    skip = int(reading.pop_number("text_encoder_layer_skip", 0))
    reading.set("clip_skip", "text_encoder_layer_skip", 1 + skip)
    reading.values["precision"] = _PRECISIONS.get(str(reading.pop("train_dtype", "FLOAT_16")), "auto")
    parts = ("unet", "text_encoder", "text_encoder_2")
    found = [reading.pop(f"{part}.gradient_checkpointing", True) for part in parts]
    whole = str(reading.pop("gradient_checkpointing", "")).upper()  # in older files
    reading.values["gradient_checkpointing"] = whole != "OFF" if whole else bool(found[0])


def _images(reading: Reading) -> None:
    given = str(reading.pop("resolution", "512"))
    first, *others = (one.strip() for one in given.split(","))
    sides = parse_sides(first)
    if sides:
        reading.set("resolution", "resolution", int(sides[0]))
        if sides[0] != sides[-1]:
            reading.set("resolution_height", "resolution", int(sides[-1]))
    if others:
        text = f"of several ({given}) belong to the folders here: set their resolutions to {given.replace(',', ' ')}"
        reading.ignore("resolution", given, text)
    reading.values["enable_buckets"] = bool(reading.pop("aspect_ratio_bucketing", True))
    reading.values["max_bucket"] = max(1024, 2 * reading.values.get("resolution", 512))
    reading.set("epochs", "epochs", reading.pop("epochs", 100))
    reading.set("batch_size", "batch_size", reading.pop("batch_size", 1))
    reading.set("gradient_accumulation", "gradient_accumulation_steps", reading.pop("gradient_accumulation_steps", 1))


def _masks(reading: Reading) -> bool:
    """Whether to train on masks; OneTrainer also trains a little on what they leave out."""
    is_on = bool(reading.pop("masked_training", False))
    weight = reading.pop_number("unmasked_weight", 0.1)
    share = reading.pop_number("unmasked_probability", 0.1)
    reading.pop("normalize_masked_area_loss")
    held = reading.pop_number("masked_prior_preservation_weight", 0)
    if is_on:
        text = f"trains on the masked area only. OneTrainer gives the rest a weight of {weight:g}"
        reading.warn("use_masks", f"{text}, and leaves the mask out in {share:.0%} of the steps.")
        reading.set("masked_prior_preservation_weight", "masked_prior_preservation_weight", held)
    return is_on


def _masked(concept: Concept) -> Concept:
    return Concept(**{**vars(concept), "use_masks": True})


def _rates(reading: Reading) -> None:
    """A rate for each part; parts that are not trained have none."""
    general = reading.pop_number("learning_rate", 3e-6)
    reading.set("learning_rate", "learning_rate", general)
    model = str(reading.pop("model_type"))
    unet = "transformer" if model == "ANIMA" else "unet"
    encoders = ("text_encoder", *(("text_encoder_2",) if model.startswith("STABLE_DIFFUSION_XL") else ()))
    trains = {part: bool(reading.pop(f"{part}.train", True)) for part in (unet, *encoders)}
    rates = {part: reading.pop_number(f"{part}.learning_rate", general) for part in trains}
    reading.values["train_unet"] = trains[unet]
    reading.values["train_text_encoder"] = any(trains[part] for part in encoders)
    reading.set("unet_lr", f"{unet}.learning_rate", rates[unet])
    if reading.values["train_text_encoder"]:
        first, second = (rates[part] if trains[part] else 0.0 for part in (encoders[0], encoders[-1]))
        reading.set("text_encoder_lr", "text_encoder.learning_rate", first)
        if first != second:
            reading.set("text_encoder_2_lr", "text_encoder_2.learning_rate", second)
    scaler = reading.pop("learning_rate_scaler", "NONE")
    if scaler != "NONE":
        reading.ignore("learning_rate_scaler", scaler, "is not available: multiply the learning rates yourself")
    decay = reading.pop_number("ema_decay", 0.999)
    if str(reading.pop("ema", "OFF")) != "OFF":
        reading.set("ema_decay", "ema_decay", decay)


def _schedule(reading: Reading) -> None:
    """The warm-up counts images of a batch there, and steps of the optimiser here."""
    given = str(reading.pop("learning_rate_scheduler", "CONSTANT"))
    lowest = reading.pop_number("learning_rate_min_factor", 0)
    chosen = _SCHEDULES.get(given) or _CLOSEST.get(given, "constant")
    if given not in _SCHEDULES:
        reading.ignore("learning_rate_scheduler", given, REPLACED)
        reading.warn("lr_schedule", f"{given} is not available; {chosen} is used, the closest.")
    if chosen == "cosine_with_restarts":
        reading.set("lr_cycles", "learning_rate_cycles", round(reading.pop_number("learning_rate_cycles", 1)))
    else:
        reading.pop("learning_rate_cycles")
    if lowest:
        chosen = "cosine_with_min_lr" if chosen == "cosine" else chosen
        reading.set("lr_min_ratio", "learning_rate_min_factor", lowest)
    warmup = reading.pop_number("learning_rate_warmup_steps", 200)
    steps = warmup / reading.values.get("gradient_accumulation", 1)
    reading.set("warmup", "learning_rate_warmup_steps", int(steps) if warmup > 1 else warmup)
    has_warmup = chosen == "constant" and reading.values.get("warmup")
    reading.values["lr_schedule"] = "constant_with_warmup" if has_warmup else chosen


def _optimizer(reading: Reading) -> None:
    given = str(reading.pop("optimizer.optimizer", reading.pop("optimizer", "ADAMW")))
    chosen = _OPTIMIZERS.get(given, "")
    if not chosen:
        chosen = "Prodigy" if given.startswith("PRODIGY") else "AdamW"
        reading.ignore("optimizer.optimizer", given, REPLACED)
        text = f"{given} is not available; {chosen} is used, the closest. Learning rates may need adjusting."
        reading.warn("optimizer", text)
    reading.values["optimizer"] = chosen
    known = OPTIMIZER_CATALOG[chosen].arguments
    arguments = {name: reading.pop(f"optimizer.{name}", _OWN_DEFAULTS.get(chosen, {}).get(name)) for name in known}
    betas = [reading.pop(f"optimizer.beta{number}") for number in (1, 2)]
    epsilons = [reading.pop(f"optimizer.{name}") for name in ("eps", "eps2")]
    if "betas" in known and None not in betas:
        arguments["betas"] = ",".join(map(str, betas))
    if "eps" in known and epsilons[0] is not None:
        arguments["eps"] = ",".join(map(str, epsilons)) if chosen == "Adafactor" and epsilons[1] else epsilons[0]
    plain = {name: value for name, value in arguments.items() if value is not None and str(value).lower() != "inf"}
    reading.values["optimizer_args"] = " ".join(f"{name}={value}" for name, value in plain.items())


def _loss(reading: Reading) -> None:
    strengths = {"l2": reading.pop_number("mse_strength", 1.0), "l1": reading.pop_number("mae_strength", 0.0)}
    strengths["huber"] = reading.pop_number("huber_strength", 0.0)
    used = [name for name, strength in strengths.items() if strength]
    reading.values["loss_type"] = used[0] if used else "l2"
    if len(used) > 1 or "huber" in used:
        text = f"is {used[0]}. In the file it is a mix: " + ", ".join(f"{name} × {strengths[name]:g}" for name in used)
        reading.warn("loss_type", f"{text}.")
    weight, strength = str(reading.pop("loss_weight_fn", "CONSTANT")), reading.pop_number("loss_weight_strength", 5)
    if weight == "MIN_SNR_GAMMA":
        reading.set("min_snr_gamma", "loss_weight_strength", strength)
    elif weight == "DEBIASED_ESTIMATION":
        reading.values["debiased_estimation"] = True
    elif weight != "CONSTANT":
        reading.ignore("loss_weight_fn", weight, "is not available: min_snr_gamma 5 is the usual weight")
    is_off = reading.is_null("clip_grad_norm")
    clip = reading.pop("clip_grad_norm", 1.0)
    reading.set("max_grad_norm", "clip_grad_norm", 0 if is_off else clip)


def _noise(reading: Reading) -> None:
    reading.set("noise_offset", "offset_noise_weight", reading.pop_number("offset_noise_weight", 0))
    reading.set("min_timestep", "min_noising_strength", int(1000 * reading.pop_number("min_noising_strength", 0)))
    reading.set("max_timestep", "max_noising_strength", round(1000 * reading.pop_number("max_noising_strength", 1)))
    kind = str(reading.pop("timestep_distribution", "UNIFORM"))
    weight, bias = reading.pop_number("noising_weight", 0), reading.pop_number("noising_bias", 0)
    if kind == "LOGIT_NORMAL":
        reading.values["timestep_sampling"] = "sigmoid"
        reading.set("sigmoid_scale", "noising_weight", weight + 1)
        reading.set("sigmoid_mean", "noising_bias", bias)
    elif kind != "UNIFORM" and not (kind == "SIGMOID" and weight == 0):  # a flat sigmoid is uniform
        reading.ignore("timestep_distribution", kind, "is not available: timesteps are drawn uniformly")
    reading.set("timestep_shift", "timestep_shift", reading.pop_number("timestep_shift", 1))


def _output(reading: Reading) -> None:
    given = str(reading.pop("output_model_destination", ""))
    path = PureWindowsPath(given) if "\\" in given else PurePath(given)
    if path.stem:
        reading.set("output_name", "output_model_destination", path.stem)
    if path.is_absolute():
        reading.set("output_dir", "output_model_destination", str(path.parent))
    reading.values["save_precision"] = _PRECISIONS.get(str(reading.pop("output_dtype", "FLOAT_32")), "fp16")
    _every(reading, "save_every", "save_every", "save", never=True)
    given_lora = reading.pop("lora_model_name", "")
    if given_lora:
        reading.set("continue_from", "lora_model_name", given_lora)


def _every(reading: Reading, name: str, key: str, ours: str, *, never: bool) -> None:
    """How often: by epochs or steps; by time, which is not available, the default stays."""
    number, unit = int(reading.pop_number(key, 0)), str(reading.pop(f"{name}_unit", "NEVER"))
    if unit in ("EPOCH", "STEP") and number:
        reading.set(f"{ours}_every_n_{unit.lower()}s", key, number)
    elif unit == "NEVER" and never:
        reading.values[f"{ours}_every_n_epochs"] = reading.values.get("epochs", 100)
    elif unit != "NEVER":
        reading.ignore(key, f"{number} {unit.lower()}s", "is not available: set it in epochs or steps")


def _samples(reading: Reading, base: Path) -> None:
    tables, named = reading.pop("samples"), reading.pop("sample_definition_file_name")
    if not tables and named:
        tables = _beside(base, str(named))
    _every(reading, "sample_after", "sample_after", "sample", never=False)
    found = [one for one in tables if isinstance(one, Mapping)] if isinstance(tables, list) else []
    shown = (one for one in found if one.get("enabled", True) and one.get("prompt"))
    reading.values["sample_prompts"] = tuple(map(_prompt, shown))


def _prompt(sample: Mapping[str, Any]) -> str:
    options = {"w": "width", "h": "height", "s": "diffusion_steps", "l": "cfg_scale", "n": "negative_prompt"}
    if not sample.get("random_seed"):
        options = {"d": "seed", **options}
    given = [f"--{name} {sample[key]}" for name, key in options.items() if sample.get(key)]
    return " ".join([" ".join(str(sample["prompt"]).split()), *given])
