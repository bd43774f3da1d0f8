"""The file that a run continues is opened and checked with the plan, before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_lora_train.adapters.create import parse_continued_file
from lib_lora_train.adapters.files.decode import ParsedLora
from lib_lora_train.adapters.files.lora_file import write_adapter
from lib_lora_train.cli.main import plan_text
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import ConfigError, Problem
from lib_lora_train.core.project import PROJECT_ROOT
from lib_lora_train.hosts.host import checkpoint_target
from lib_lora_train.runs.checks.checkpoint_check import check_checkpoint
from lib_lora_train.runs.checks.continued_file import _read_parsed, continued_file_problems

IMAGES = PROJECT_ROOT / "assets" / "demo" / "train"
UNET = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def lora(name: str, width: int, out: int) -> dict[str, Tensor]:
    return {f"{name}.lora_down.weight": torch.ones(2, width), f"{name}.lora_up.weight": torch.ones(out, 2)}


def width_of_the_tiny_model() -> int:
    """The width of the mid block of the model that a run uses without a checkpoint."""
    from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
    from lib_lora_train.models.model_files import read_checkpoint_info

    return int(read_checkpoint_info(EMBEDDED_CHECKPOINT, None).spec.unet["block_out_channels"][-1])


@pytest.fixture
def continued(tmp_path: Path) -> Any:
    """Settings that continue a file with these tensors."""

    def write(state: dict[str, Tensor], **values: Any) -> TrainConfig:
        path = tmp_path / "old.safetensors"
        write_adapter(path, state, metadata={}, precision="fp32")
        return TrainConfig(concepts=(Concept(folder=str(IMAGES)),), continue_from=str(path), **values)

    return write


def found(config: TrainConfig) -> list[Problem]:
    problems = check_checkpoint(config, checkpoint_target(config)).problems
    return [problem for problem in problems if problem.where == "continue_from"]


def test_a_file_that_fits_is_no_problem(continued: Any) -> None:
    width = width_of_the_tiny_model()
    assert found(continued(lora(UNET, width, width))) == []
    assert list(continued_file_problems(TrainConfig())) == []


def test_a_file_that_was_checked_is_not_kept_open_nor_in_memory(continued: Any) -> None:
    width = width_of_the_tiny_model()
    config = continued(lora(UNET, width, width))
    assert found(config) == []
    kept = _read_parsed(Path(config.continue_from)).layers[UNET]
    assert {name: tuple(tensor.shape) for name, tensor in kept.weights.items()} == {
        "down": (2, width),
        "up": (width, 2),
    }
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept.weights.values()) <= 8


def test_a_file_for_another_model_is_refused_before_anything_is_loaded(
    continued: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = continued(lora(UNET, 7, 9))
    monkeypatch.setattr("lib_lora_train.models.checkpoint.load_checkpoint", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(ConfigError, match="No layer of this file fits the model"):
        plan_text(config, tmp_path, on_cpu=True)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (lora("lora_unet_double_blocks_0_img_attn_proj", 4, 4), "Flux"),
        ({f"{UNET}.q_layer.weight": torch.zeros(4, 6)}, "Not read: 1 key of T-LoRA"),
        ({f"{UNET}.oft_R.weight": torch.zeros(4, 6)}, "1 layer of OFT of inputs, which cannot be trained here"),
        ({name: t * float("nan") for name, t in lora(UNET, 4, 4).items()}, "contains NaN"),
    ],
    ids=["another model", "a form that is not read", "a form that is only read", "damaged"],
)
def test_a_file_that_cannot_be_continued_is_refused_with_the_reason(
    continued: Any, state: dict[str, Tensor], text: str
) -> None:
    (problem,) = found(continued(state))
    assert problem.level == "error" and text in problem.message


def test_a_missing_file_is_refused(continued: Any) -> None:
    config = TrainConfig(continue_from="nowhere.safetensors")
    for problems in (found(config), list(continued_file_problems(config))):  # by its header, and by itself
        (problem,) = problems
        assert problem.level == "error" and "does not exist" in problem.message


def test_what_the_model_lacks_is_a_warning(continued: Any) -> None:
    width = width_of_the_tiny_model()
    state = lora(UNET, width, width) | lora("lora_unet_elsewhere", 4, 4) | {"bundle_emb.x.clip_l": torch.ones(4)}
    (problem,) = found(continued(state))
    assert problem.level == "warning" and "lacks 2 keys or layers of the file" in problem.message


def test_a_part_that_is_not_trained_is_named(continued: Any) -> None:
    width = width_of_the_tiny_model()
    (problem,) = found(continued(lora(UNET, width, width), train_unet=False))
    assert problem.level == "error" and "no layers of the parts being trained" in problem.message


def test_an_unchanged_file_is_read_once(continued: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    width = width_of_the_tiny_model()
    config, read = continued(lora(UNET, width, width)), list[Path]()

    def parse(path: Path) -> ParsedLora:
        read.append(path)
        return parse_continued_file(path)

    monkeypatch.setattr("lib_lora_train.runs.checks.continued_file.parse_continued_file", parse)
    assert found(config) == found(config) == []
    assert len(read) == 1


def test_a_file_that_was_changed_is_read_again(continued: Any) -> None:
    assert "fits" in found(continued(lora(UNET, 7, 9)))[0].message
    width = width_of_the_tiny_model()
    assert found(continued(lora(UNET, width, width))) == []
