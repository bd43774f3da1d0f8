"""A LoRA file on a model that a run uses too: it acts only when asked, and the run's adapter is untouched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_lora_train.adapters.file_on_model import FileOnModel, without_adapter
from lib_lora_train.adapters.files.lora_file import AdapterFile, read_adapter, write_adapter
from lib_lora_train.adapters.inject import Adapter
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.text_encoding import encode_text, tokenize
from tests.stand_ins.training_parts import adapted, shared_model, small_config


def _output(model: DiffusionModel) -> Tensor:
    """The UNet's output for a caption: it depends on the adapter of either."""
    with torch.no_grad():
        condition = encode_text(model, tokenize(model, ["a fox"]), 1)
        x = torch.linspace(-1, 1, 256).view(1, 4, 8, 8)
        output: Tensor = model.unet(x, torch.tensor([500]), encoder_hidden_states=condition.hidden).sample
    return output


def _random(adapter: Adapter, seed: int) -> Adapter:
    for parameters in adapter.groups.values():
        for parameter in parameters:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(seed))
    return adapter


@pytest.fixture
def file(tmp_path: Path) -> AdapterFile:
    """A LoRA on the UNet and the text encoder."""
    adapter = _random(adapted(shared_model(), small_config(train_text_encoder=True)), 1)
    write_adapter(tmp_path / "a.safetensors", adapter.state(), metadata={}, precision="fp32")
    adapter.remove()
    return read_adapter(tmp_path / "a.safetensors")


def _structure(model: DiffusionModel) -> list[tuple[str, int]]:
    return [(name, id(module)) for root in (model.unet, *model.text_encoders) for name, module in root.named_modules()]


def test_it_acts_as_in_training_while_it_is_in_place_and_the_model_is_as_before_otherwise(file: AdapterFile) -> None:
    model = shared_model()
    before, plain = _structure(model), _output(model)
    trained = _random(adapted(model, small_config(train_text_encoder=True)), 1)
    expected = _output(model)
    trained.remove()
    lora = FileOnModel(model, file)
    assert lora.left_out == ()
    for _ in range(2):
        assert torch.equal(_output(model), plain) and _structure(model) == before
        with lora.in_place():
            assert torch.allclose(_output(model), expected, atol=1e-6)  # the file has its alpha, not its rounding
    assert torch.equal(_output(model), plain) and _structure(model) == before
    assert not model.unet._forward_pre_hooks and not model.unet._forward_hooks


def test_the_adapter_of_a_run_is_aside_meanwhile_and_back_afterwards(file: AdapterFile) -> None:
    model = shared_model()
    plain = _output(model)
    lora = FileOnModel(model, file)
    with lora.in_place():
        expected = _output(model)
    run = _random(adapted(model, small_config(train_text_encoder=True)), 2)
    try:
        before, of_run = _structure(model), _output(model)
        assert not torch.allclose(of_run, plain, atol=1e-3)
        late = FileOnModel(model, file)
        for one in (lora, late):
            with one.in_place():
                assert torch.equal(_output(model), expected)
            assert torch.equal(_output(model), of_run) and _structure(model) == before
        with without_adapter(model):
            assert torch.equal(_output(model), plain)
        with pytest.raises(ValueError, match="broken"), lora.in_place():
            raise ValueError("broken")
        assert torch.equal(_output(model), of_run) and _structure(model) == before
    finally:
        run.remove()
    assert torch.equal(_output(model), plain)


def test_a_file_that_does_not_fit_leaves_the_run_its_adapter(file: AdapterFile) -> None:
    model = shared_model()
    run = _random(adapted(model, small_config()), 2)
    try:
        before = _structure(model)
        foreign = {f"{'lora_unet_nothing'}.{name}": torch.ones(1, 1) for name in ("lora_down.weight", "lora_up.weight")}
        with pytest.raises(AdapterError):
            FileOnModel(model, AdapterFile(file.path, foreign, {}))
        assert _structure(model) == before
    finally:
        run.remove()
