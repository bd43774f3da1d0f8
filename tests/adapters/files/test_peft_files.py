"""Files saved by PEFT have the same effect here as in PEFT's forward pass and merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from torch import Tensor

from lib_lora_train.adapters.files.decode import parse_file
from lib_lora_train.adapters.files.lora_file import AdapterFile, read_adapter
from lib_lora_train.adapters.files.peft_alphas import add_external_alphas
from lib_lora_train.adapters.inject import inject_parsed
from tests.stand_ins.adapters_model import tiny_model

TARGETS = ["to_q", "to_k", "ff.net.2"]


def saved_by_peft(folder: Path, config: Any = None, **settings: Any) -> tuple[Path, Tensor, dict[str, Tensor]]:
    """A file of random weights on the tiny UNet, PEFT's prediction with it, and the weights that PEFT merges.

    A LoRA with these settings, or another kind by its `config`.
    """
    model = tiny_model()
    config = config or LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False, **settings)
    adapted = get_peft_model(model.unet, config)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
    adapted.eval()
    predicted = model.predict().detach()
    adapted.save_pretrained(str(folder), safe_serialization=True)
    merged = adapted.merge_and_unload()
    weights = {f"{name}.weight": layer.weight.detach() for name, layer in merged.named_modules() if _is_target(name)}
    return folder / "adapter_model.safetensors", predicted, weights


def _is_target(name: str) -> bool:
    return name.endswith(tuple(TARGETS))


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 2},
        {"lora_alpha": 5},
        {"lora_alpha": 5, "use_rslora": True},
        {"lora_alpha": 5, "alpha_pattern": {"attn1.to_q": 3}},
    ],
    ids=["alpha is rank", "alpha", "rank-stabilised", "alpha by layer"],
)
def test_a_lora_saved_by_peft_predicts_what_peft_predicts(settings: dict[str, Any], tmp_path: Path) -> None:
    path, expected, _ = saved_by_peft(tmp_path, **settings)
    model = tiny_model()
    before = model.predict().detach()
    _, left = inject_parsed(model, parse_file(read_adapter(path)))
    assert left == ()
    assert float((expected - before).norm() / before.norm()) > 0.01, "the LoRA must be large enough to be seen"
    # fp32 sums in another order through some forty layers.
    torch.testing.assert_close(model.predict().detach(), expected, rtol=1e-4, atol=1e-5)


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "loha, alpha is rank": (LoHaConfig, {"r": 4, "alpha": 4}),
    "loha": (LoHaConfig, {"r": 4, "alpha": 10}),
    "loha, tucker": (LoHaConfig, {"r": 4, "alpha": 10, "use_effective_conv2d": True}),
    "loha, alpha by layer": (LoHaConfig, {"r": 4, "alpha": 10, "alpha_pattern": {"attn1.to_q": 2}}),
    "lokr": (LoKrConfig, {"r": 2, "alpha": 10}),
    "lokr, both split": (LoKrConfig, {"r": 1, "alpha": 3, "decompose_both": True}),
    "lokr, tucker": (LoKrConfig, {"r": 2, "alpha": 10, "use_effective_conv2d": True}),
    "lokr, whole": (LoKrConfig, {"r": 64, "alpha": 10, "rank_pattern": {"attn1.to_q": 32}}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_loha_or_lokr_saved_by_peft_predicts_what_peft_predicts(kind: str, tmp_path: Path) -> None:
    make, settings = KINDS[kind]
    config = make(target_modules=[*TARGETS, "conv1"], init_weights=False, **settings)
    path, expected, _ = saved_by_peft(tmp_path, config)
    model = tiny_model()
    before = model.predict().detach()
    _, left = inject_parsed(model, parse_file(read_adapter(path)))
    assert left == ()
    difference = float((model.predict().detach() - expected).norm() / (expected - before).norm())
    assert difference < 1e-4, "fp32 sums in another order through some forty layers, the update large"


def test_an_invalid_pattern_is_skipped() -> None:
    config = json.dumps({"lora_alpha": 4, "alpha_pattern": {"to_q(": 9, "to_q": 6}})
    state = {"x.to_q.lora_A.weight": torch.zeros(2, 3), "x.to_k.lora_A.weight": torch.zeros(())}
    file = AdapterFile(Path("a.safetensors"), state, {"lora_adapter_metadata": config})
    assert {key: float(t) for key, t in add_external_alphas(file).items() if key.endswith("alpha")} == {
        "x.to_q.alpha": 6
    }
