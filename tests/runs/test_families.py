"""Every family on every kind of model, in an ordinary run: trained, written, read back, in the webui's formulas."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lib_lora_train.adapters.files.decode import parse_file
from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.adapters.inject import Adapter, inject_parsed
from lib_lora_train.config.family_catalog import FAMILY_CATALOG
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.config.validation.validate import validate
from lib_lora_train.core.control import Control
from lib_lora_train.core.events import LoraWritten
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.methods.trained_part import TrainedPart
from lib_lora_train.models.architecture import Architecture
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.text_encoding import encode_text, tokenize
from lib_lora_train.runs import trainer
from lib_lora_train.runs.records.folder import new_run_folder
from lib_lora_train.training.step import predict
from tests.stand_ins.run_parts import NOT_MEASURED
from tests.stand_ins.tiny_models import write_tiny_checkpoint
from tests.stand_ins.webui_formulas import a1111_delta

pytestmark = pytest.mark.slow

KINDS: tuple[Architecture, ...] = ("sd1", "sd2", "sdxl")
PARTS = {
    "sd1": ("lora_unet_down_blocks_", "lora_te_text_model_"),
    "sd2": ("lora_unet_down_blocks_", "lora_te_text_model_"),
    "sdxl": ("lora_unet_input_blocks_", "lora_te1_text_model_", "lora_te2_text_model_"),
}
CONVOLUTIONS: dict[str, Any] = {"targets": "all", "conv_rank": 2, "conv_alpha": 1.0}
FAMILIES: dict[str, dict[str, Any]] = {
    **{family: {"family": family} for family in FAMILY_CATALOG},
    # Families that need other settings here, and all further forms.
    "lora of attention": {"targets": "attention"},
    "lora, rank-stabilised": {"rank_stabilized": True},
    "locon": CONVOLUTIONS,
    "locon, tucker": {**CONVOLUTIONS, "tucker": True},
    "loha": {"family": "loha", "targets": "all"},
    "loha, tucker": {"family": "loha", "targets": "all", "tucker": True},
    "lokr": {"family": "lokr", "targets": "all", "lokr_factor": 4},
    "lokr, both": {"family": "lokr", "rank": 1, "lokr_factor": 8, "decompose_both": True},
    "lokr, whole": {"family": "lokr", "targets": "all", "lokr_factor": 4, "full_matrix": True},
    "dylora": {"family": "dylora", "dylora_unit": 2},
    "ia3": {"family": "ia3", "learning_rate": 5e-3},
    "ia3, every linear layer": {"family": "ia3", "targets": "full", "learning_rate": 5e-3},
    "oft": {"family": "oft", "targets": "all"},
    "oft, bounded and rescaled": {"family": "oft", "constraint": 1e-3, "rescaled": True},
    "boft, bounded and rescaled": {"family": "boft", "constraint": 1e-3, "rescaled": True},
    "dora": {"dora": True},
    "dora on locon": {**CONVOLUTIONS, "dora": True},
    "dora on loha": {"family": "loha", "dora": True},
    "dora on lokr": {"family": "lokr", "lokr_factor": 4, "dora": True},
    "full": {"family": "full", "targets": "full", "train_norm": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with its caption, and a tiny checkpoint of each kind."""
    setup = tmp_path_factory.mktemp("families")
    (setup / "data").mkdir()
    Image.effect_noise((64, 64), 80.0).convert("RGB").save(setup / "data" / "a.png")
    (setup / "data" / "a.txt").write_text("zorp on grass", encoding="utf-8")
    for kind in KINDS:
        write_tiny_checkpoint(setup / f"{kind}.safetensors", kind, shallow=True)
    return setup


@pytest.fixture(scope="module")
def hosts(folder: Path) -> dict[str, StandaloneHost]:
    """A host for each kind of model, which keeps it loaded."""
    return {kind: StandaloneHost(None, None, folder / f"Lora {kind}", "cpu") for kind in KINDS}


def settings(folder: Path, kind: str, **values: Any) -> TrainConfig:
    """One step at 64 px, saved exactly, without images."""
    plain: dict[str, Any] = {
        "concepts": (Concept(folder=str(folder / "data"), trigger="zorp"),),
        "checkpoint": str(folder / f"{kind}.safetensors"),
        "output_name": "a",
        "resolution": 64,
        "min_bucket": 64,
        "epochs": 1,
        "batch_size": 1,
        "rank": 4,
        "alpha": 2.0,
        "learning_rate": 1e-3,
        "warmup": 0.0,
        "sample_prompts": (),
        "sample_every_n_epochs": 0,
        "save_precision": "fp32",
        **NOT_MEASURED,
    }
    return TrainConfig().replace(**{**plain, **values})


@torch.no_grad()
def answer(model: DiffusionModel) -> Tensor:
    """What the model predicts for a caption, through all of its text encoders."""
    condition = encode_text(model, tokenize(model, ["zorp on grass"]), 1)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return predict(model, latents, torch.tensor([400]), condition, torch.full((1, 6), 64.0))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_saved_file_has_the_trained_effect_in_the_webui(
    kind: str, name: str, folder: Path, hosts: dict[str, StandaloneHost], tmp_path: Path
) -> None:
    config, host = settings(folder, kind, **FAMILIES[name]), hosts[kind]
    assert [problem for problem in validate(config) if problem.level == "error"] == []
    host.lora_dir, answers = tmp_path, []

    def measure(model: DiffusionModel, adapter: TrainedPart) -> Mapping[str, float]:
        assert isinstance(adapter, Adapter)
        answers.append(answer(model))
        return {}

    run = new_run_folder(tmp_path / "outputs", "a")
    events = list(trainer.run_training(config, host, folder=run, control=Control(), measure=measure))
    before, trained = answers[0], answers[-1]
    model = host.load_model(config)
    assert torch.equal(answer(model), before), "the run left something behind"
    assert not torch.equal(trained, before), "nothing was learnt"

    (written,) = [event.path for event in events if isinstance(event, LoraWritten)]
    file = read_adapter(written)
    opened = parse_file(file)
    assert opened.unknown == ()
    adapter, left = inject_parsed(model, opened)
    try:
        assert left == ()
        # The same numbers; only the order in which a DyLoRA's or a DoRA's are multiplied may differ.
        torch.testing.assert_close(answer(model), trained, rtol=1e-5, atol=1e-6)
        for prefix in PARTS[kind]:
            norms = [norm for key, norm in adapter.norms().items() if key.startswith(prefix)]
            assert norms and max(norms) > 0, f"nothing was learnt in {prefix}"
        assert worst_difference(adapter, file.state) < 1e-6
    finally:
        adapter.remove()


def worst_difference(adapter: Adapter, state: Mapping[str, Tensor]) -> float:
    """The largest relative difference, over all layers, of our ΔW and A1111's from the file's keys."""
    worst = 0.0
    for key, layer in adapter.layers.items():
        own = {k.split(".", 1)[1]: t for k, t in state.items() if k.split(".", 1)[0] == key}
        exact = {k: t.double() if t.is_floating_point() and t.dim() else t for k, t in own.items()}
        base: Any = layer.base_layer.weight
        theirs = a1111_delta(exact, base.double())
        if float(theirs.norm()) > 0:
            # Rotations and lengths are differences of numbers as large as W, each rounded some times: their digits
            # end where W's do, and a step's ΔW is a thousandth of W.
            floor = 4 * torch.finfo(torch.float32).eps * float(base.norm())
            worst = max(worst, (float((layer.diff_weight() - theirs).norm()) - floor) / float(theirs.norm()))
        else:
            assert float(layer.diff_weight().norm()) == 0.0
    return worst
