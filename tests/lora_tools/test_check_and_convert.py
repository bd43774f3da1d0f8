"""Checking a LoRA file, and converting it to a form that every webui reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_lora_train.adapters import registry
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.files.decode import TUCKER_LOKR, parse_state
from lib_lora_train.adapters.files.lora_file import AdapterFile, read_adapter, write_adapter
from lib_lora_train.adapters.inject import inject_parsed
from lib_lora_train.adapters.registry import AdapterSpec, family_of
from lib_lora_train.cli import main as cli
from lib_lora_train.config.family_catalog import families_forge_ignores
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.lora_tools.check import check, format_report
from lib_lora_train.lora_tools.convert import base_mismatch, convert, truncate_to_rank, write_converted
from lib_lora_train.models.checkpoint import legacy_hash
from tests.stand_ins.adapters_model import TinyModel, tiny_model, trained

_DTYPES = {"fp16": "torch.float16", "bf16": "torch.bfloat16", "fp32": "torch.float32"}
FAMILIES = {
    **{family: AdapterSpec(family, 2, 1.0) for family in registry.FAMILIES},
    # Families that need other settings here.
    "lora": AdapterSpec(rank=2, alpha=1.0, targets="all"),
    "dora": AdapterSpec(rank=2, alpha=1.0, is_dora=True),
    "lokr": AdapterSpec("lokr", 2, 1.0, options=Options(factor=2)),
    "oft": AdapterSpec("oft", 4, 1.0),
    "boft": AdapterSpec("boft", 4, 1.0),
    "full": AdapterSpec("full", 2, 1.0, train_norm=True),
}


def file_of(spec: AdapterSpec, model: TinyModel, metadata: dict[str, str] | None = None) -> tuple[AdapterFile, Tensor]:
    """A trained file, and the model's prediction with it; the adapter is removed from the model."""
    adapter = trained(model, spec)
    expected, state = model.predict().detach(), adapter.state()
    adapter.remove()
    return AdapterFile(Path("some.safetensors"), state, metadata or {}), expected


def file_kind(name: str) -> str:
    """The first family with the same tensors in its files: DyLoRA's file is a LoRA's."""
    ours = registry.FAMILIES[name]
    same = (kind for kind, other in registry.FAMILIES.items() if other.LAYOUTS == ours.LAYOUTS)
    return next(kind for kind in same if registry.FAMILIES[kind].STATE_KEYS == ours.STATE_KEYS)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_diff_file_has_exactly_the_familys_update(name: str) -> None:
    model = tiny_model()
    file, expected = file_of(FAMILIES[name], model)
    converted = convert(file, model, to="diff")
    assert converted.error == 0.0 and converted.left_out == ()
    endings = {key.split(".", 1)[1] for key in converted.state}
    assert endings <= {"diff", "diff_b", "w_norm", "b_norm"}
    inject_parsed(model, parse_state(converted.state))
    # fp32 products in another order through some forty layers.
    torch.testing.assert_close(model.predict(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["ia3", "oft", "loha", "dora"])
def test_error_of_a_lora_is_measured_and_falls_with_the_rank(name: str) -> None:
    model = tiny_model()
    file, expected = file_of(FAMILIES[name], model)
    errors = [convert(file, model, to="lora", rank=rank).error for rank in (1, 3, 64)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-5, "the widest layer has 64 channels in or out: nothing is lost"
    whole = convert(file, model, to="lora", rank=64)
    inject_parsed(model, parse_state(whole.state))
    torch.testing.assert_close(model.predict(), expected, rtol=1e-3, atol=1e-4)


def test_a_converted_lora_is_the_best_of_its_rank() -> None:
    """Eckart & Young: its error is the norm of the omitted singular values."""
    diff = torch.randn(24, 10, 3, 3, generator=torch.Generator().manual_seed(0))
    tensors = truncate_to_rank(diff, 5)
    product = tensors["lora_up.weight"].flatten(1) @ tensors["lora_down.weight"].flatten(1)
    left = torch.linalg.svdvals(diff.flatten(1).double())[5:]
    assert float((diff.flatten(1) - product).norm()) == pytest.approx(float(left.norm()), rel=1e-4)
    assert tensors["lora_down.weight"].shape == (5, 10, 3, 3)
    assert tensors["lora_up.weight"].shape == (24, 5, 1, 1)


@pytest.mark.parametrize(("to", "precision"), [("lora", "fp32"), ("lora", "bf16"), ("diff", "fp16"), ("diff", "bf16")])
def test_reported_error_matches_the_written_file(tmp_path: Path, to: str, precision: str) -> None:
    model = tiny_model()
    file, _ = file_of(FAMILIES["loha"], model)
    converted = convert(file, model, to=to, rank=2, precision=precision)
    write_converted(tmp_path / "a.safetensors", converted, to=to, rank=2, metadata={})
    written = read_adapter(tmp_path / "a.safetensors").state
    assert {str(tensor.dtype) for tensor in written.values() if tensor.dim()} == {_DTYPES[precision]}
    before, _ = inject_parsed(model, parse_state(file.state))
    exact = {key: layer.diff_weight().double() for key, layer in before.layers.items()}
    before.remove()
    after, _ = inject_parsed(model, parse_state(written))
    missed = sum(float((after.layers[key].diff_weight() - exact[key]).square().sum()) for key in exact)
    whole = sum(float(diff.square().sum()) for diff in exact.values())
    assert converted.error == pytest.approx((missed / whole) ** 0.5, rel=1e-4)


def test_a_bias_that_a_lora_cannot_hold_is_reported() -> None:
    model = tiny_model()
    file, _ = file_of(FAMILIES["full"], model)
    converted = convert(file, model, to="lora", rank=64)
    assert converted.left_out and all(name.endswith("diff_b") for name in converted.left_out)
    assert any(key.endswith("w_norm") for key in converted.state)


def test_converting_leaves_the_model_unchanged() -> None:
    model = tiny_model()
    before = model.predict()
    file, _ = file_of(FAMILIES["oft"], model)
    convert(file, model, to="lora", rank=1)
    assert torch.equal(model.predict(), before)


@pytest.mark.parametrize(("to", "rank", "message"), [("doc", 4, "lora or diff"), ("lora", 0, "Rank 0")])
def test_invalid_conversions_are_refused(to: str, rank: int, message: str) -> None:
    model = tiny_model()
    with pytest.raises(AdapterError, match=message):
        convert(AdapterFile(Path("a"), {}, {}), model, to=to, rank=rank)


def test_metadata_describes_the_converted_file(tmp_path: Path) -> None:
    model = tiny_model()
    file, _ = file_of(FAMILIES["ia3"], model, {"ss_output_name": "fox", "ss_network_module": "lycoris.kohya"})
    converted = convert(file, model, to="lora", rank=4)
    write_converted(tmp_path / "b.safetensors", converted, to="lora", rank=4, metadata=file.metadata)
    metadata = read_adapter(tmp_path / "b.safetensors").metadata
    network = {
        key: metadata[key] for key in ("ss_output_name", "ss_network_module", "ss_network_dim", "ss_network_alpha")
    }
    assert network == {
        "ss_output_name": "b",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4.0",
    }
    assert json.loads(metadata["ss_network_args"]) == {}


@pytest.mark.parametrize("name", FAMILIES)
def test_another_checkpoint_is_reported_if_the_update_depends_on_it(name: str, tmp_path: Path) -> None:
    file, _ = file_of(FAMILIES[name], tiny_model(), {"ss_sd_model_name": "fox.safetensors"})
    checkpoint = tmp_path / "other.safetensors"
    checkpoint.write_bytes(bytes(0x120000))
    known = {"ss_sd_model_hash": legacy_hash(checkpoint)}
    strange = {"ss_sd_model_hash": "0123abcd"}

    def warning(metadata: dict[str, str]) -> str:
        return base_mismatch(AdapterFile(file.path, file.state, {**file.metadata, **metadata}), checkpoint)

    assert warning({}) == warning({"ss_sd_model_hash": "None"}) == warning(known) == ""
    depends = family_of(FAMILIES[name]).DEPENDS_ON_MODEL
    assert ("was trained on fox.safetensors (0123abcd)" in warning(strange)) == depends


# --- check --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_family_rank_and_layers_are_found(name: str) -> None:
    spec = FAMILIES[name]
    file, _ = file_of(spec, tiny_model())
    checked = check(file)
    kind = {"dora": "lora + dora"}.get(name) or file_kind(name)
    assert set(checked.families) == ({kind, "norm"} if spec.train_norm else {kind})
    assert set(checked.parts) == {"UNet", "text encoder"}
    assert checked.unknown == checked.zero == () and not checked.defects
    assert kind in format_report(checked)
    if name in ("lora", "loha", "lokr"):
        assert dict(checked.ranks).keys() == {2} and dict(checked.alphas).keys() == {1.0}


def test_norms_match_the_update() -> None:
    model = tiny_model()
    for name in ("lora", "loha", "lokr"):
        file, _ = file_of(FAMILIES[name], model)
        adapter, _ = inject_parsed(model, parse_state(file.state))
        for key, norm in check(file).norms.items():
            assert norm == pytest.approx(adapter.norms()[key], rel=1e-4)
        adapter.remove()


def test_problems_are_reported() -> None:
    file, _ = file_of(FAMILIES["lora"], tiny_model())
    state = dict(file.state)
    first, second = (key for key in list(state)[:6] if key.endswith("lora_up.weight"))
    state[first] = torch.full_like(state[first], torch.nan)
    state[second] = torch.zeros_like(state[second])
    state["what.is.this"] = torch.ones(1)
    checked = check(AdapterFile(file.path, state, {}))
    assert [defect.layer for defect in checked.defects] == [first.split(".")[0]]
    assert checked.zero == (second.split(".")[0],)
    assert checked.unknown == ("what.is.this",)
    problems = " ".join(checked.problems)
    assert "NaN" in problems and "not recognised" in problems


@pytest.mark.parametrize("name", families_forge_ignores())
def test_families_that_forge_ignores_are_reported(name: str) -> None:
    file, _ = file_of(FAMILIES[name], tiny_model())
    assert "Forge ignores" in " ".join(check(file).problems)


def test_a_lokr_that_forge_cannot_use_is_reported() -> None:
    plain = AdapterSpec("lokr", 2, 1.0, targets="all", options=Options(factor=2))
    core = AdapterSpec("lokr", 2, 1.0, targets="all", options=Options(factor=2, use_tucker=True))
    reported = [check(file_of(spec, tiny_model())[0]).remarks.get(TUCKER_LOKR, 0) > 0 for spec in (plain, core)]
    assert reported == [False, True]
    assert "with which Forge fails" in " ".join(check(file_of(core, tiny_model())[0]).problems)


@pytest.mark.parametrize(("width", "base"), [(768, "SD1"), (1024, "SD2"), (2048, "SDXL")])
def test_base_model_is_inferred_from_the_cross_attention_width(width: int, base: str) -> None:
    key = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    families: list[dict[str, Any]] = [
        {"lora_down.weight": torch.ones(2, width), "lora_up.weight": torch.ones(8, 2)},
        {"lokr_w1": torch.ones(2, 4), "lokr_w2": torch.ones(4, width // 4)},
        {
            "hada_w1_a": torch.ones(8, 2),
            "hada_w1_b": torch.ones(2, width),
            "hada_w2_a": torch.ones(8, 2),
            "hada_w2_b": torch.ones(2, width),
        },
        {"diff": torch.ones(8, width)},
    ]
    for tensors in families:
        state = {f"{key}.{ending}": tensor for ending, tensor in tensors.items()}
        assert check(AdapterFile(Path("a"), state, {})).base_model == base


def test_commands_check_and_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path) -> None:
    """On the embedded model, through the command line."""
    from lib_lora_train.adapters.inject import inject
    from lib_lora_train.config.train_config import TrainConfig
    from lib_lora_train.hosts.standalone import StandaloneHost

    model = StandaloneHost(None, None, tmp_path, device="cpu").load_model(TrainConfig())
    adapter = inject(model, AdapterSpec("ia3", targets="attention", text_encoder=False), seed=1)
    with torch.no_grad():
        adapter.groups["unet"][0].normal_()
    path = tmp_path / "tiny.safetensors"
    write_adapter(path, adapter.state(), metadata={}, precision="fp32")
    assert cli.main(["check", str(path)]) == 0
    assert "ia3 × " in capsys.readouterr().out
    out = tmp_path / "out.safetensors"
    assert cli.main(["convert", str(path), "--to", "lora", "--rank", "4", "--out", str(out), "--cpu"]) == 0
    assert "Error: " in capsys.readouterr().out
    assert cli.main(["check", str(out)]) == 0
    assert "rank: 4 × " in capsys.readouterr().out
