"""The networks of kohya's tools and LyCORIS train here what they train there: rank, scale, layers and nothing more."""

from __future__ import annotations

from typing import Any

import pytest

from lib_lora_train.adapters.families.factorization import lokr_shapes
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.formats.kohya.exporter import to_gui
from lib_lora_train.formats.kohya.importer import Imported, from_gui, from_script


def script(*arguments: str, module: str = "lycoris.kohya", **values: Any) -> Imported:
    given = {"network_dim": 16, "network_alpha": 16, "network_args": list(arguments), **values}
    return from_script({"network_module": module, **given})


def gui(lora_type: str, **values: Any) -> Imported:
    return from_gui({"LoRA_type": lora_type, "network_dim": 16, "network_alpha": 16, **values})


AS_THERE: dict[str, Any] = {
    "precision": "bf16",
    "caption_lines": "first",
    "missing_captions": "folder name",
    "keep_tokens_separator": "",
}


def lost(imported: Imported) -> set[str]:
    return {ignored.key for ignored in imported.ignored if not ignored.is_harmless}


def warnings(imported: Imported) -> list[str]:
    return [problem.message for problem in imported.problems if problem.level == "warning"]


# --- LoKr's full matrices --------------------------------------------------------------------------

_WIDTHS = (320, 640, 768, 1024, 1280, 1920, 2048, 2560, 3072, 4096, 5120, 10240)


@pytest.mark.parametrize("factor", [None, -1, 1, 2, 3, 4, 5, 6, 7, 8, 16, 64])
@pytest.mark.parametrize("rank", [6000, 10000, 99999, 100000])
def test_a_rank_beyond_every_layer_is_a_full_matrix(factor: int | None, rank: int) -> None:
    given = {} if factor is None else {"factor": factor}
    imported = gui("LyCORIS/LoKr", network_dim=rank, network_alpha=1, conv_dim=rank, conv_alpha=1, **given)
    config = imported.config
    assert (config.family, config.full_matrix, config.alpha, config.conv_rank) == ("lokr", True, None, None)
    assert (lost(imported), warnings(imported)) == (set(), [])


@pytest.mark.parametrize("factor", [-1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16])
@pytest.mark.parametrize("rank", [1025, 1281, 2000, 2561, 4000, 5121])
def test_full_matrices_are_chosen_only_if_lycoris_decomposes_none(factor: int, rank: int) -> None:
    config = gui("LyCORIS/LoKr", network_dim=rank, conv_dim=rank, factor=factor).config
    theirs = [lokr_shapes((a, b), Options(rank=rank, factor=factor)) for a in _WIDTHS for b in _WIDTHS]
    assert not config.full_matrix or all(set(shapes) == {"w1", "w2"} for shapes in theirs)


def test_full_matrices_of_one_kind_of_layer_leave_the_other_its_rank() -> None:
    config = gui("LyCORIS/LoKr", network_dim=16, conv_dim=100_000, factor=8).config
    assert (config.full_matrix, config.rank, config.conv_rank) == (False, 16, 1024)


def test_full_matrices_are_exported_as_a_rank_that_the_gui_knows() -> None:
    config = TrainConfig(family="lokr", full_matrix=True, lokr_factor=8, targets="full", **AS_THERE)
    exported = to_gui(config)
    assert (exported.values["network_dim"], exported.values["conv_dim"]) == (100_000, 100_000)
    assert exported.lost == ()
    assert from_gui(exported.values).config.full_matrix


@pytest.mark.parametrize(("rank", "alpha"), [(2048, 2048), (2048, 1024), (4096, 16)])
def test_a_rank_above_the_limit_keeps_its_scale(rank: int, alpha: int) -> None:
    imported = gui("Standard", network_dim=rank, network_alpha=alpha)
    config = imported.config
    assert config.rank == 1024
    assert config.effective_alpha / config.rank == alpha / rank
    assert any("nearest" in message for message in warnings(imported))


@pytest.mark.parametrize(
    ("key", "value", "name", "nearest"),
    [
        ("lr_scheduler_power", 30, "lr_power", 10.0),
        ("keep_tokens", 75, "keep_tokens", 32),
        ("max_bucket_reso", 8192, "max_bucket", 4096),
        ("min_bucket_reso", 32, "min_bucket", 64),
        ("train_batch_size", 512, "batch_size", 256),
    ],
)
def test_a_number_outside_our_range_becomes_the_nearest_with_a_warning(
    key: str, value: int, name: str, nearest: float
) -> None:
    imported = gui("Standard", **{key: value})
    assert getattr(imported.config, name) == nearest
    assert any(problem.where == name and problem.level == "warning" for problem in imported.problems)


# --- networks of sd-scripts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lora_type", "values", "expected"),
    [
        ("Kohya LoKr", {"factor": 8, "conv_dim": 0}, {"family": "lokr", "lokr_factor": 8, "targets": "standard"}),
        ("Kohya LoKr", {"conv_dim": 4, "use_tucker": True}, {"targets": "all", "conv_rank": 4, "tucker": True}),
        ("Kohya LoHa", {"conv_dim": 4, "conv_alpha": 2}, {"family": "loha", "targets": "all", "conv_alpha": 2.0}),
        ("Kohya LoHa", {}, {"family": "loha", "targets": "all", "conv_rank": 1}),
        ("LoRA-FA", {"conv_dim": 8}, {"family": "lora", "targets": "standard", "conv_rank": None}),
        ("LyCORIS/Diag-OFT", {"conv_dim": 8}, {"family": "oft", "conv_rank": 8}),
        ("LyCORIS/BOFT", {"conv_dim": 8, "constrain": 1}, {"family": "boft", "conv_rank": 8, "constraint": 0.0}),
        ("LyCORIS/LoKr", {"use_cp": True, "use_tucker": False}, {"tucker": True}),
        ("LyCORIS/LoKr", {"use_cp": False, "use_tucker": True}, {"tucker": False}),
        ("LyCORIS/LoHa", {"use_cp": True}, {"tucker": False}),
        ("LyCORIS/LoHa", {"use_tucker": True}, {"tucker": True}),
        ("LyCORIS/LoCon", {}, {"targets": "full", "conv_rank": 1}),
    ],
)
def test_a_network_of_the_gui_has_the_layers_and_sizes_it_has_there(
    lora_type: str, values: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = gui(lora_type, **values).config
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("imported", "expected"),
    [
        (script("factor=4", "conv_dim=8", module="networks.lokr"), {"family": "lokr", "conv_alpha": 1.0}),
        (script("use_tucker=True", module="networks.loha"), {"family": "loha", "targets": "standard"}),
        (script("conv_dim=8", module="networks.lora"), {"conv_rank": 8, "conv_alpha": 1.0}),
        (script("algo=loha", "conv_dim=8", network_alpha=4), {"conv_rank": 8, "conv_alpha": 4.0, "alpha": 4.0}),
        (script("algo=loha"), {"conv_rank": None, "conv_alpha": None}),
        (script("algo=diag-oft", "conv_dim=8"), {"family": "oft", "conv_rank": 8}),
        (script("algo=lokr", "use_tucker=False", "use_cp=True"), {"tucker": True}),
        (script("algo=dylora", "block_size=8"), {"dylora_unit": 8}),
        (script("algo=dylora"), {"dylora_unit": 4}),
    ],
)
def test_a_network_of_the_script_has_the_defaults_it_has_there(imported: Imported, expected: dict[str, Any]) -> None:
    assert {name: getattr(imported.config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("imported", "name", "targets"),
    [
        (script("algo=tlora", "preset=attn-mlp"), "tlora", "standard"),
        (script("algo=tlora", "conv_dim=8"), "tlora", "full"),
        (gui("LoRA-FA"), "LoRA-FA", "standard"),
        (script(module="networks.lora_fa"), "LoRA-FA", "standard"),
        (script(module="networks.oft"), "kohya's OFT", "attention"),
        (script("enable_all_linear=True", module="networks.oft"), "kohya's OFT", "standard"),
    ],
)
def test_a_network_that_is_not_here_keeps_its_layers_and_is_named(imported: Imported, name: str, targets: str) -> None:
    assert imported.config.targets == targets
    assert any(f"{name} is not available" in message for message in warnings(imported))
    assert lost(imported) & {"LoRA_type", "network_module"}


def test_kohyas_oft_counts_blocks_and_has_its_constraint_in_alpha() -> None:
    imported = script(module="networks.oft", network_dim=4, network_alpha=0.001)
    assert (imported.config.rank, imported.config.constraint) == (TrainConfig().rank, 0.001)
    assert "network_dim" in lost(imported)


def test_the_scale_of_glora_is_reported_where_it_is_not_ours() -> None:
    assert any("0.0625" in message for message in warnings(gui("LyCORIS/GLoRA", network_alpha=1)))
    assert warnings(gui("LyCORIS/GLoRA")) == []


# --- what kohya's tools ignore ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lora_type", "values"),
    [
        ("LyCORIS/LoCon", {"block_dims": ",".join(["4"] * 25), "block_alphas": ",".join(["2"] * 25)}),
        ("LyCORIS/LoKr", {"down_lr_weight": "sine", "mid_lr_weight": "0.5", "up_lr_weight": "zeros"}),
        ("LyCORIS/iA3", {"module_dropout": 0.1, "rank_dropout": 0.1}),
        ("Kohya DyLoRA", {"module_dropout": 0.1, "block_dims": ",".join(["4"] * 25)}),
        ("Kohya LoKr", {"up_lr_weight": "zeros"}),
    ],
)
def test_what_kohya_ignores_is_ignored_with_a_sentence(lora_type: str, values: dict[str, Any]) -> None:
    imported = gui(lora_type, **values)
    plain = gui(lora_type).config
    assert imported.config == plain
    assert lost(imported) == set()
    sentences = [problem.message for problem in imported.problems if "kohya's tools ignore" in problem.message]
    assert len(sentences) == 1
    assert "To use it here, set" in sentences[0]


@pytest.mark.parametrize("lora_type", ["Standard", "Kohya LoCon", "LoRA-FA"])
def test_what_kohyas_own_lora_reads_is_imported(lora_type: str) -> None:
    values = {"module_dropout": 0.1, "rank_dropout": 0.2, "up_lr_weight": "zeros+.5"}
    config = gui(lora_type, **values).config
    assert (config.module_dropout, config.rank_dropout, config.up_lr_weight) == (0.1, 0.2, "zeros+.5")


# --- blocks ----------------------------------------------------------------------------------------

_BLOCKS = ",".join(["8"] * 25)


@pytest.mark.parametrize(("alpha", "expected"), [(16, ",".join(["16"] * 25)), (0, ""), (4, ",".join(["4"] * 25))])
def test_blocks_with_a_rank_but_no_alpha_have_the_files_alpha(alpha: int, expected: str) -> None:
    config = gui("Standard", network_alpha=alpha, block_dims=_BLOCKS).config
    assert (config.block_ranks, config.block_alphas) == (_BLOCKS, expected)


def test_alphas_that_keep_the_scale_are_left_to_the_rank() -> None:
    config = gui("Standard", block_dims=_BLOCKS, block_alphas=_BLOCKS).config
    assert config.block_alphas == ""


def test_convolutions_keep_their_rank_beside_ranks_of_blocks() -> None:
    config = gui("Kohya LoCon", conv_dim=16, conv_alpha=16, block_dims=_BLOCKS).config
    assert config.conv_rank == 16


def test_ranks_of_blocks_are_exported_with_the_alphas_that_kohya_needs() -> None:
    config = TrainConfig(block_ranks=_BLOCKS, alpha=8.0)
    exported = to_gui(config)
    assert exported.values["block_alphas"] == ",".join(["4"] * 25)
    assert from_gui(exported.values).config.block_alphas == ""


# --- what LyCORIS does beyond its settings ---------------------------------------------------------


@pytest.mark.parametrize(
    ("imported", "is_reported"),
    [
        (gui("LyCORIS/LoKr", network_dim=8, factor=-1), True),
        (gui("LyCORIS/LoKr", network_dim=2, factor=8), True),
        (gui("LyCORIS/LoKr", network_dim=4, factor=8), False),
        (gui("LyCORIS/LoKr", network_dim=64, factor=-1), False),
        (gui("LyCORIS/LoKr", network_dim=8, decompose_both=True), False),
        (gui("Kohya LoKr", network_dim=8), False),
        (script("algo=lokr", network_dim=8), False),
        (script("algo=lokr", "decompose_both=False", network_dim=8), True),
    ],
)
def test_a_small_matrix_that_lycoris_decomposes_is_reported(imported: Imported, is_reported: bool) -> None:
    assert any(problem.where == "decompose_both" for problem in imported.problems) is is_reported


@pytest.mark.parametrize(
    ("imported", "is_reported"),
    [
        (gui("LyCORIS/LoCon", dora_wd=True), True),
        (script("algo=loha", "dora_wd=True"), True),
        (script("algo=loha", "dora_wd=True", "wd_on_output=False"), False),
        (gui("LyCORIS/LoCon", dora_wd=False), False),
        (gui("LyCORIS/BOFT", dora_wd=True), False),
    ],
)
def test_the_other_norm_of_dora_is_reported(imported: Imported, is_reported: bool) -> None:
    assert any("over outputs" in message for message in warnings(imported)) is is_reported
    assert lost(imported) == set()
