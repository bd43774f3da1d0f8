"""A LoRA from two checkpoints: the nearest one to what a fine-tune changed in each layer, ΔW = W_tuned − W_base.

What a LoRA cannot hold (norms, biases, layers that are not targets) is measured, and reported as a share of the whole
change. Both checkpoints are read layer by layer, so that memory is bounded by the largest layer and not by the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib_lora_train.adapters.files.conversion import ConversionBuilder, Converted
from lib_lora_train.adapters.files.lora_file import SavedAdapter
from lib_lora_train.adapters.files.spelling import spelled
from lib_lora_train.adapters.registry import AdapterSpec
from lib_lora_train.adapters.targets import Target, find_targets
from lib_lora_train.config.architecture_titles import TITLES
from lib_lora_train.config.settings.network import TARGETS
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.core.seeding import seed_for
from lib_lora_train.core.wording import count
from lib_lora_train.lora_tools.convert import write_converted
from lib_lora_train.lora_tools.low_rank import decompose, lora_tensors
from lib_lora_train.lora_tools.rank_rule import RankRule
from lib_lora_train.models.base_metadata import base_metadata
from lib_lora_train.models.checkpoint import legacy_hash
from lib_lora_train.models.checkpoint_parameters import CheckpointParameters, read_parameters
from lib_lora_train.models.kinds.registry import kind_of

_WORST = 3


@dataclass(frozen=True)
class ExtractOptions:
    """How a LoRA is extracted.

    Attributes:
        rule: the rank of each layer
        targets: the layers, as the setting *targets*; `all` and `full` give a LoCon
        text_encoder: whether the text encoders' changes are part of it
        clamp_quantile: values of both matrices beyond this quantile are cut to it, as sd-scripts does with 0.99;
            above 0.5, 1: none
    """

    rule: RankRule
    targets: str = "all"
    text_encoder: bool = True
    clamp_quantile: float = 1.0

    def check(self) -> None:
        """AdapterError for a value out of range."""
        self.rule.check()
        if self.targets not in TARGETS:
            raise AdapterError(f"{self.targets!r} is not a choice of layers. Choose one of {', '.join(TARGETS)}.")
        if not 0.5 < self.clamp_quantile <= 1:
            raise AdapterError(
                f"clamp_quantile must be above 0.5 and at most 1, not {self.clamp_quantile:g}; 1 cuts nothing."
            )


@dataclass(frozen=True)
class Extracted:
    """The new file's contents, and what of the change it does not hold.

    Attributes:
        converted: the tensors, and the error in the layers of the file
        ranks: the rank of each layer by kohya's name; layers that both checkpoints share are left out
        outside: ‖change outside these layers‖ / ‖whole change‖ of the UNet and the text encoders, from 0 to 1
        notes: sentences about differences that a LoRA does not hold
        metadata: of the new file
    """

    converted: Converted
    ranks: Mapping[str, int]
    outside: float
    notes: tuple[str, ...]
    metadata: Mapping[str, str]

    @property
    def worst(self) -> str:
        """The layers with the largest relative errors: `lora_unet_a (98.1%), …`."""
        errors = self.converted.layer_errors
        names = sorted(errors, key=lambda name: -errors[name])[:_WORST]
        return ", ".join(f"{name} ({errors[name]:.1%})" for name in names)


@torch.no_grad()
def extract(
    base: Path,
    tuned: Path,
    options: ExtractOptions,
    *,
    precision: str = "fp16",
    on_layer: Callable[[int, int], None] = lambda _done, _total: None,
) -> Extracted:
    """The change from `base` to `tuned` as a LoRA; `on_layer` gets the layers done and their number.

    AdapterError for options out of range, checkpoints of different kinds and checkpoints without a difference,
    ModelError for a file that is no checkpoint.
    """
    options.check()
    old, new = _comparable(base, tuned)
    spec = AdapterSpec(targets=options.targets, text_encoder=options.text_encoder and bool(old.text_encoders))
    groups = find_targets(old, spec)
    targets = [(_label(group), target) for group, (_, found) in groups.items() for target in found]
    builder, ranks, inside = ConversionBuilder(precision), dict[str, int](), 0.0
    for done, (label, target) in enumerate(targets):
        on_layer(done, len(targets))
        diff = _difference(old, new, label, f"{target.name}.weight")
        if diff is None:
            continue
        tensors = _factors(target, diff, options)
        builder.add_layer(target.key, tensors, diff)
        ranks[target.key] = len(tensors["lora_down.weight"])
        inside += float(diff.double().square().sum())
    on_layer(len(targets), len(targets))
    if not ranks:
        raise AdapterError(
            f"{old.path.name} and {new.path.name} do not differ in the chosen layers beyond rounding. "
            "Choose a fine-tuned checkpoint and the one it was trained from, or more layers."
        )
    outside = sum(_outside(old, new, {(label, f"{target.name}.weight") for label, target in targets}))
    converted = builder.build(())
    paths = kind_of(old.spec.architecture).lora_paths(target.name for label, target in targets if label == "unet")
    return Extracted(
        replace(converted, state=spelled(converted.state, paths)),
        ranks,
        math.sqrt(outside / (inside + outside)),
        tuple(_notes(old, new)),
        _metadata(old, new),
    )


def write_extracted(path: Path, extracted: Extracted) -> SavedAdapter:
    """Write the new file. LoraTrainError if there is a file already, OutputError if writing fails."""
    rank = max(extracted.ranks.values())
    return write_converted(path, extracted.converted, to="lora", rank=rank, metadata=extracted.metadata)


def _comparable(base: Path, tuned: Path) -> tuple[CheckpointParameters, CheckpointParameters]:
    """Both checkpoints; AdapterError if they are the same file, or models of different kinds or shapes."""
    old, new = read_parameters(base), read_parameters(tuned)
    if base.samefile(tuned):
        raise AdapterError(
            f"{base.name} is given twice. Choose a fine-tuned checkpoint and the one it was trained from."
        )
    titles = [TITLES[model.spec.architecture] for model in (old, new)]
    if titles[0] != titles[1]:
        raise AdapterError(
            f"{base.name} is {titles[0]}, and {tuned.name} is {titles[1]}. Choose two checkpoints of the same kind."
        )
    for label, part in old.networks.items():
        shapes = {name: parameter.shape for name, parameter in part.module.named_parameters()}
        theirs = {name: parameter.shape for name, parameter in new.networks[label].module.named_parameters()}
        wrong = sorted(name for name in {*shapes, *theirs} if shapes.get(name) != theirs.get(name))
        if wrong:
            raise AdapterError(
                f"{base.name} and {tuned.name} have {count(len(wrong), 'tensor')} of different shapes, the first is "
                f"{label}.{wrong[0]}. Choose two checkpoints of the same kind."
            )
    return old, new


def _label(group: str) -> str:
    """The network of a group of targets; a single text encoder has no number there."""
    return "text_encoder_1" if group == "text_encoder" else group


def _difference(old: CheckpointParameters, new: CheckpointParameters, label: str, name: str) -> Tensor | None:
    """W_tuned − W_base of a parameter, fp32; None if they are equal in the coarser of their dtypes."""
    before, after = old.read(label, name), new.read(label, name)
    coarser = min((before.dtype, after.dtype), key=lambda dtype: (torch.finfo(dtype).bits, -torch.finfo(dtype).eps))
    if torch.equal(before.to(coarser).float(), after.to(coarser).float()):
        return None
    return after.float() - before.float()


def _factors(target: Target, diff: Tensor, options: ExtractOptions) -> dict[str, Tensor]:
    """kohya's ending → tensor of the nearest LoRA of a layer's ΔW."""
    is_conv = any(side > 1 for side in diff.shape[2:])
    factors = decompose(diff.flatten(1), options.rule, is_conv=is_conv, seed=seed_for(0, f"extract/{target.key}"))
    if options.clamp_quantile == 1:
        return lora_tensors(*factors.balanced, diff.shape)
    up, down = factors.with_values_in_up
    limit = _clamp_limit(up, down, options.clamp_quantile)
    return lora_tensors(up.clamp(-limit, limit), down.clamp(-limit, limit), diff.shape)


def _clamp_limit(up: Tensor, down: Tensor, quantile: float) -> float:
    """The quantile of the values of both matrices and their negatives.

    sd-scripts takes that of the values alone, which depends on the signs of the singular vectors, and these are
    arbitrary; over both signs it is the same.
    """
    values = torch.cat([up.flatten(), down.flatten()]).abs().numpy()
    return float(np.quantile(values, 2 * quantile - 1))


def _outside(old: CheckpointParameters, new: CheckpointParameters, inside: set[tuple[str, str]]) -> Iterator[float]:
    """‖Δ‖² of every changed parameter of the UNet and the text encoders that is not in the file."""
    for label, part in old.networks.items():
        for name, _ in part.module.named_parameters():
            if label != "vae" and (label, name) not in inside:
                diff = _difference(old, new, label, name)
                if diff is not None:
                    yield float(diff.double().square().sum())


def _notes(old: CheckpointParameters, new: CheckpointParameters) -> Iterator[str]:
    if old.spec.prediction_type != new.spec.prediction_type:
        yield (
            f"{old.name} predicts {old.spec.prediction_type}, {new.name} {new.spec.prediction_type}: a LoRA for "
            f"{old.name} cannot change that, and its images will be wrong."
        )
    vae = old.networks.get("vae")
    if vae and any(_difference(old, new, "vae", name) is not None for name, _ in vae.module.named_parameters()):
        yield f"The VAEs differ, too. A LoRA holds no VAE: use that of {new.name}."


def _metadata(old: CheckpointParameters, new: CheckpointParameters) -> dict[str, str]:
    """The base model as in the file of a run, and what was extracted."""
    return {
        **base_metadata(old.spec),
        "ss_sd_model_name": old.path.name,
        **({"ss_sd_model_hash": legacy_hash(old.path)} if old.path.is_file() else {}),
        "ss_training_comment": f"extracted: {new.name} - {old.name}",
    }
