"""A LoRA merged into an Anima's checkpoint: W + weight · scale · B·A in every spelling, and nothing else changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_lora_train.adapters.files.lora_file import AdapterFile, read_adapter
from lib_lora_train.adapters.inject import inject
from lib_lora_train.adapters.registry import spec_from_config
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError, ModelError, OutputError
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.lora_tools import changed_copy
from lib_lora_train.lora_tools.merge_into_checkpoint import MergedCheckpoint, write_merged_checkpoint
from tests.stand_ins.tiny_anima import PREFIX, transformer_tensors

RANK, ALPHA, WEIGHT = 2, 1.0, 0.7
BLOCK = "blocks.1.cross_attn.k_proj"
LAYERS = {
    BLOCK: (32, 24),
    "blocks.0.mlp.layer1": (128, 32),
    "blocks.0.adaln_modulation_mlp.2": (96, 8),
    "final_layer.linear": (64, 32),
    "llm_adapter.blocks.0.mlp.0": (12, 6),
}
IN_DIFFUSERS = {
    BLOCK: "transformer.transformer_blocks.1.attn2.to_k",
    "blocks.0.mlp.layer1": "transformer.transformer_blocks.0.ff.net.0.proj",
    "blocks.0.adaln_modulation_mlp.2": "transformer.transformer_blocks.0.norm3.linear_2",
    "final_layer.linear": "transformer.proj_out",
    "llm_adapter.blocks.0.mlp.0": "text_conditioner.blocks.0.mlp.0",
}


def write_checkpoint(path: Path, prefix: str = PREFIX, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """An Anima with a layer of its text adapter that has a bias, and a tensor of something else."""
    adapter = {
        "llm_adapter.blocks.0.mlp.0.weight": torch.randn(12, 6),
        "llm_adapter.blocks.0.mlp.0.bias": torch.ones(12),
    }
    tensors = {**transformer_tensors(prefix=prefix), **{prefix + name: tensor for name, tensor in adapter.items()}}
    tensors = {**{name: tensor.to(dtype) for name, tensor in tensors.items()}, "extra.number": torch.tensor(7)}
    save_file(tensors, path, {"modelspec.title": "tiny"})
    return tensors


def matrices() -> dict[str, tuple[Tensor, Tensor]]:
    """(up, down) of every layer."""
    generator = torch.Generator().manual_seed(1)
    return {
        layer: (torch.randn(rows, RANK, generator=generator), torch.randn(RANK, columns, generator=generator))
        for layer, (rows, columns) in LAYERS.items()
    }


def lora_in(spelling: str, path: Path = Path("a.safetensors")) -> AdapterFile:
    """The matrices as a file of kohya's, ComfyUI's or diffusers' names; the last has no alpha."""
    state: dict[str, Tensor] = {}
    for layer, (up, down) in matrices().items():
        if spelling == "kohya":
            name = f"lora_unet_{layer}".replace(".", "_")
            state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            state[f"{name}.alpha"] = torch.tensor(ALPHA)
        elif spelling == "ComfyUI":
            name = f"diffusion_model.{layer}"
            state |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, f"{name}.alpha": torch.tensor(ALPHA)}
        else:
            name = IN_DIFFUSERS[layer]
            state |= {f"{name}.lora_A.weight": down * ALPHA / RANK, f"{name}.lora_B.weight": up}
    return AdapterFile(path, state, {})


def expected(layer: str, base: Tensor) -> Tensor:
    up, down = matrices()[layer]
    return base.double() + WEIGHT * (ALPHA / RANK) * (up.double() @ down.double())


def merged(checkpoint: Path, *files: AdapterFile) -> tuple[MergedCheckpoint, Mapping[str, Tensor]]:
    made = write_merged_checkpoint(
        checkpoint, [(file, WEIGHT) for file in files], checkpoint.with_name("new.safetensors")
    )
    return made, load_file(made.path)


@pytest.mark.parametrize("prefix", [PREFIX, "net.", ""])
@pytest.mark.parametrize("spelling", ["kohya", "ComfyUI", "diffusers"])
def test_every_spelling_of_file_and_checkpoint_is_merged(tmp_path: Path, prefix: str, spelling: str) -> None:
    before = write_checkpoint(tmp_path / "anima.safetensors", prefix)
    made, after = merged(tmp_path / "anima.safetensors", lora_in(spelling))
    assert (made.layers, made.left_out) == (len(LAYERS), ())
    changed = {f"{prefix}{layer}.weight": layer for layer in LAYERS}
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        if name in changed:
            wanted = expected(changed[name], before[name])
            torch.testing.assert_close(tensor.double(), wanted, rtol=1e-6, atol=1e-6)  # sums in fp32
        else:
            assert torch.equal(tensor, before[name]), name


def test_weights_in_16_bit_are_rounded_once_and_keep_their_place(tmp_path: Path) -> None:
    before = write_checkpoint(tmp_path / "anima.safetensors", dtype=torch.bfloat16)
    _, after = merged(tmp_path / "anima.safetensors", lora_in("kohya"))
    for layer in LAYERS:
        name = f"{PREFIX}{layer}.weight"
        wanted, found = expected(layer, before[name]), after[name].double()
        assert after[name].dtype == torch.bfloat16
        assert bool(((found - wanted).abs() <= wanted.abs() * 2**-8 + 1e-6).all()), "half a step of bf16"
    with safe_open(str(tmp_path / "new.safetensors"), framework="pt") as new:
        metadata = new.metadata()
    assert metadata["modelspec.title"] == "tiny" and metadata["modelspec.merged_from"] == "a × 0.7"


def test_two_files_are_added_to_the_unchanged_weights(tmp_path: Path) -> None:
    before = write_checkpoint(tmp_path / "anima.safetensors")
    _, after = merged(tmp_path / "anima.safetensors", lora_in("kohya"), lora_in("diffusers"))
    name = f"{PREFIX}{BLOCK}.weight"
    wanted = before[name].double() + 2 * (expected(BLOCK, before[name]) - before[name].double())
    torch.testing.assert_close(after[name].double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", [{}, {"family": "loha"}, {"family": "lokr"}, {"family": "full"}, {"dora": True}])
def test_every_family_is_merged_as_it_was_trained(tmp_path: Path, family: dict[str, object]) -> None:
    before = write_checkpoint(tmp_path / "anima.safetensors")
    config = TrainConfig(
        checkpoint=str(tmp_path / "anima.safetensors"), precision="fp32", rank=2, train_text_encoder=False
    )
    config = config.replace(**family)
    model = StandaloneHost(None, None, tmp_path, "cpu").load_layers(config)
    adapter = inject(model, spec_from_config(config), seed=0)
    generator = torch.Generator().manual_seed(2)
    state = {
        key: tensor if key.endswith("alpha") else tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for key, tensor in adapter.state().items()
    }
    adapter.load_state(state)
    deltas = {key: layer.diff_weight().detach() for key, layer in adapter.layers.items()}
    file = AdapterFile(Path("a.safetensors"), adapter.state(), {})
    adapter.remove()
    made, after = merged(tmp_path / "anima.safetensors", file)
    assert made.layers == len(deltas) and not made.left_out
    names = {f"lora_unet_{name}".replace(".", "_"): f"{PREFIX}{name}.weight" for name in plain_layers(before)}
    for key, delta in deltas.items():
        found = after[names[key]] - before[names[key]]
        torch.testing.assert_close(found, WEIGHT * delta, rtol=1e-3, atol=1e-5)


def plain_layers(tensors: Mapping[str, Tensor]) -> list[str]:
    return [
        name[len(PREFIX) : -len(".weight")] for name in tensors if name.endswith(".weight") and name.startswith(PREFIX)
    ]


def test_what_does_not_fit_is_listed_and_a_file_without_any_fitting_layer_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "anima.safetensors")
    wrong = {"lora_te_layers_0_self_attn_q_proj": (8, 8), "lora_unet_blocks_0_self_attn_q_proj": (31, 32)}
    state = dict(lora_in("kohya").state)
    for layer, (rows, columns) in wrong.items():
        state[f"{layer}.lora_down.weight"], state[f"{layer}.lora_up.weight"] = (
            torch.ones(2, columns),
            torch.ones(rows, 2),
        )
    made, _ = merged(tmp_path / "anima.safetensors", AdapterFile(Path("b.safetensors"), state, {}))
    assert set(made.left_out) == {f"b.safetensors: {layer}" for layer in wrong}
    only = {key: tensor for key, tensor in state.items() if key.startswith("lora_te")}
    with pytest.raises(AdapterError, match=r"No layer of c\.safetensors fits"):
        write_merged_checkpoint(
            tmp_path / "anima.safetensors",
            [(AdapterFile(Path("c.safetensors"), only, {}), 1.0)],
            tmp_path / "other.safetensors",
        )
    assert not (tmp_path / "other.safetensors").exists()


def test_weights_in_8_bit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "anima.safetensors", dtype=torch.float8_e4m3fn)
    with pytest.raises(ModelError, match="is stored in 8 bit or less"):
        merged(tmp_path / "anima.safetensors", lora_in("kohya"))
    assert [path.name for path in tmp_path.iterdir()] == ["anima.safetensors"]


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    write_checkpoint(tmp_path / "anima.safetensors")
    monkeypatch.setattr(changed_copy, "tensor_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        merged(tmp_path / "anima.safetensors", lora_in("kohya"))
    assert [path.name for path in tmp_path.iterdir()] == ["anima.safetensors"]


def test_the_merged_file_is_an_anima_again(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "anima.safetensors")
    made, _ = merged(tmp_path / "anima.safetensors", lora_in("kohya"))
    config = TrainConfig(checkpoint=str(made.path), precision="fp32")
    assert StandaloneHost(None, None, tmp_path, "cpu").load_layers(config).spec.architecture == "anima"


def test_read_files_are_merged(tmp_path: Path) -> None:
    """As the commands read them, not only from memory."""
    before = write_checkpoint(tmp_path / "anima.safetensors")
    save_file(dict(lora_in("ComfyUI").state), tmp_path / "a.safetensors")
    _, after = merged(tmp_path / "anima.safetensors", read_adapter(tmp_path / "a.safetensors"))
    name = f"{PREFIX}{BLOCK}.weight"
    torch.testing.assert_close(after[name].double(), expected(BLOCK, before[name]), rtol=1e-6, atol=1e-6)
