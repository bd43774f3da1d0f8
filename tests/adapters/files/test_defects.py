"""Damaged tensors in a LoRA file are found at the door: whoever uses the file refuses it, and says why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_lora_train.adapters.create import create_adapter
from lib_lora_train.adapters.files.decode import parse_sound_file, parse_state
from lib_lora_train.adapters.files.defects import find_misfit
from lib_lora_train.adapters.files.lora_file import AdapterFile, read_adapter, write_adapter
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.lora_tools.check import check_file
from lib_lora_train.lora_tools.convert import convert
from lib_lora_train.lora_tools.merge import merge
from tests.adapters.files.test_decode import FAMILY_SPECS
from tests.stand_ins.adapters_model import tiny_model, trained

_DAMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "empty": lambda tensor: tensor.new_zeros(0),
    "one number": lambda tensor: tensor.flatten()[0].clone(),
    "another size": lambda tensor: torch.cat([tensor, tensor]) if tensor.dim() else tensor.repeat(3),
    "another dimension": lambda tensor: tensor.new_zeros(3, 3, 3, 3, 3),
    "NaN": lambda tensor: torch.full_like(tensor.float(), torch.nan),
    "infinity": lambda tensor: torch.full_like(tensor.float(), torch.inf),
    "whole numbers": lambda tensor: tensor.to(torch.int64),
}
# What a file cannot show: a single tensor may have any number of rows where no other one of the layer tells.
_INVISIBLE = {
    ("one number", ".alpha"),
    ("one number", ".on_input"),
    ("whole numbers", ".alpha"),
    ("whole numbers", ".on_input"),
    *(("another size", ending) for ending in (".diff", ".dora_scale", ".weight", ".oft_blocks", ".rescale")),
    *(("another size", f".{name}") for name in ("lora_up.weight", "lora_down.weight", "hada_w1_a", "hada_w2_a")),
    *(("another size", f".{name}") for name in ("lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w2_a", "b2.weight", "diff_b")),
    *(("another size", f".{name}") for name in ("w_norm", "b_norm", "a2.weight", "b1.weight")),
}


@pytest.mark.parametrize("damage", _DAMAGES)
@pytest.mark.parametrize("name", FAMILY_SPECS)
def test_every_damaged_tensor_of_every_family_is_found(name: str, damage: str) -> None:
    state = family_state(name)
    parsed = parse_state(state)
    assert parsed.defects == () and parsed.unknown == ()
    layer = next(iter(parsed.layers))
    for key in [key for key in state if key.startswith(f"{layer}.")]:
        if (damage, key.removeprefix(layer)) in _INVISIBLE:
            continue
        again = parse_state({**state, key: _DAMAGES[damage](state[key])})
        is_found = layer in [defect.layer for defect in again.defects] or key in again.unknown
        assert is_found, (
            f"{damage} in {key} {tuple(state[key].shape)}: declare the shapes in LAYOUTS, with the same name for the "
            "same size; if no other tensor of the layer has this size, add the key's ending to _INVISIBLE here"
        )
        assert layer not in again.layers


@cache
def family_state(name: str) -> Mapping[str, Tensor]:
    """What a file of this family contains; not to be changed."""
    return {key: tensor.clone() for key, tensor in trained(tiny_model(), FAMILY_SPECS[name]).state().items()}


def lora_state() -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in family_state("lora").items()}


def first(state: dict[str, Tensor], ending: str) -> str:
    return next(key for key in state if key.endswith(ending))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda s: {**s, first(s, "lora_up.weight"): s[first(s, "lora_up.weight")].flatten(1).t().contiguous()},
            "do not fit",
        ),
        (lambda s: {**s, first(s, "lora_down.weight"): torch.full((2, 8), torch.nan)}, "NaN or infinity"),
        (lambda s: {k: v for k, v in s.items() if k != first(s, "lora_up.weight")}, "lora_up.weight is missing"),
        (lambda s: {**s, first(s, ".alpha"): torch.tensor([1.0, 2.0])}, "alpha has 2 numbers instead of one"),
        (lambda s: {**s, first(s, ".alpha"): torch.tensor(3e38)}, "alpha is 3e"),
    ],
)
def test_nothing_uses_a_damaged_file(
    damage: Callable[[dict[str, Tensor]], dict[str, Tensor]], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "broken.safetensors"
    write_adapter(path, damage(lora_state()), metadata={}, precision="fp32")
    problems = " ".join(check_file(path).problems)
    assert reason in problems and "unusable" in problems
    file, model = read_adapter(path), tiny_model()
    uses: list[Callable[[], object]] = [
        lambda: parse_sound_file(file),
        lambda: convert(file, model, to="lora"),
        lambda: merge([(file, 1.0), (file, 0.5)], model),
        lambda: create_adapter(model, TrainConfig(continue_from=str(path))),
    ]
    for use in uses:
        with pytest.raises(AdapterError, match=reason) as refused:
            use()
        assert "broken.safetensors" in str(refused.value)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "a Stable Diffusion checkpoint"),
        ("first_stage_model.encoder.conv_in.weight", "a VAE"),
        ("conv_in.weight", "a UNet in diffusers' layout"),
        ("text_model.embeddings.token_embedding.weight", "a text encoder"),
        ("emb_params", "a textual-inversion embedding"),
    ],
)
def test_another_kind_of_file_is_called_what_it_is(key: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    write_adapter(path, {key: torch.zeros(2, 2), "x.weight": torch.zeros(2, 2)}, metadata={}, precision="fp32")
    with pytest.raises(AdapterError, match=rf"other.safetensors is {kind}.*, not a LoRA"):
        check_file(path)


def test_weights_of_any_other_module_are_not_ia3() -> None:
    parsed = parse_state({"down_blocks.0.resnets.0.conv1.weight": torch.zeros(8, 4, 3, 3)})
    assert parsed.layers == {} and parsed.unknown == ("down_blocks.0.resnets.0.conv1.weight",)


def test_a_file_of_ours_is_sound_whatever_its_precision(tmp_path: Path) -> None:
    for precision in ("fp16", "bf16", "fp32"):
        path = tmp_path / f"{precision}.safetensors"
        write_adapter(path, lora_state(), metadata={}, precision=precision)
        assert parse_sound_file(read_adapter(path)).layers
    half = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in lora_state().items()}
    assert parse_sound_file(AdapterFile(Path("fp8"), half, {})).layers


@pytest.mark.parametrize(
    ("shapes", "fits"),
    [
        ({"down": (4, 8), "up": (16, 4)}, True),
        ({"down": (4, 8, 3, 3), "up": (16, 4, 1, 1)}, True),
        ({"down": (4, 8, 1, 1), "up": (16, 4)}, True),
        ({"down": (4, 8), "up": (16, 5)}, False),
        ({"down": (4, 8), "up": (16, 4, 3, 3)}, False),
        ({"down": (4,), "up": (16, 4)}, False),
        ({"down": (4, 8)}, False),
    ],
)
def test_shapes_match_a_layout_together(shapes: dict[str, tuple[int, ...]], fits: bool) -> None:
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    found = find_misfit("layer", weights, {"down": "d", "up": "u"}, [{"down": "r i *k", "up": "o r ~"}])
    assert (found is None) == fits
