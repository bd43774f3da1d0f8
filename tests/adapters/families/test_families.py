"""What each family guarantees on its own, and errors that other tools make silently."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lib_lora_train.adapters.adapted_layer import AdaptedLayer, AdapterSwitch
from lib_lora_train.adapters.dropout import DropoutRates, DropoutState
from lib_lora_train.adapters.families.dylora import trained_rows
from lib_lora_train.adapters.families.factorization import butterfly, factorisation, lokr_shapes
from lib_lora_train.adapters.families.layouts import rank_of
from lib_lora_train.adapters.families.lora import Lora
from lib_lora_train.adapters.families.oft import cayley_minus_identity
from lib_lora_train.adapters.families.options import Options, options_from_config
from lib_lora_train.adapters.files.lora_file import read_adapter, write_adapter
from lib_lora_train.adapters.flat_parameters import FlatBuffer, Slices
from lib_lora_train.adapters.inject import inject
from lib_lora_train.adapters.registry import FAMILIES, AdapterSpec, family_of, spec_from_config
from lib_lora_train.config.family_catalog import families_with
from lib_lora_train.config.settings import network
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError
from tests.stand_ins.adapter_cases import ALPHA, CASES, LAYERS, RANK, make, relative
from tests.stand_ins.adapters_model import TinyModel, tiny_model

DIMENSIONS = sorted({320, 640, 768, 960, 1024, 1280, 1920, 2048, 2560, 3072, 4096, 5120, 10240})  # of SD1, SD2, SDXL


def test_settings_offer_every_family_and_no_other() -> None:
    assert tuple(FAMILIES) == network.FAMILIES


# --- scales -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["loha", "lokr", "lora_tucker", "dylora"])
def test_scale_is_applied_once(case: str) -> None:
    layer, _ = make(case, "conv3x3")
    family, named, base = layer.family, layer.slices.fp32(), layer.base_layer.weight
    twice = Options(RANK, 2 * ALPHA, layer.options.use_tucker, layer.options.factor)
    assert relative(family.diff_weight(named, twice, base), 2 * layer.diff_weight()) < 1e-6  # type: ignore[arg-type]


def test_options_have_the_defaults_of_their_settings() -> None:
    assert options_from_config(TrainConfig()) == Options()
    assert (Options().rank, Options().alpha) == (TrainConfig().rank, TrainConfig().effective_alpha)


def test_alpha_of_full_lokr_and_glora_has_no_effect() -> None:
    for case in ("lokr_whole", "glora"):
        layer, _ = make(case, "linear")
        assert float(layer.state()["alpha"]) == RANK
        assert layer.scale == 1.0


def test_loading_a_glora_ignores_its_alpha_as_a1111_does() -> None:
    layer, _ = make("glora", "linear")
    before = layer.diff_weight().clone()
    layer.load_state({**layer.state(), "alpha": torch.tensor(0.5)})
    assert torch.equal(layer.diff_weight(), before)


def test_rank_stabilised_file_scales_by_alpha_over_root_rank() -> None:
    spec = spec_from_config(TrainConfig(rank=16, alpha=4.0, rank_stabilized=True))
    options = spec.options_for(nn.Linear(4, 4), "to_q")
    assert options.alpha == 16.0 and options.scale == 4.0 / 16**0.5  # hosts compute 16 / 16


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_dylora_trains_with_the_scale_it_saves(strength: float) -> None:
    """With the last block all ranks are used, so a training pass equals the file's effect."""
    layer, x = make("dylora", "linear")
    layer.switch.strength = strength
    plain = layer(x)
    layer.switch.dropout = _dropout_with_block(layer, last=True)
    assert relative(layer(x), plain) < 1e-6


def test_dylora_trains_only_the_drawn_rows() -> None:
    layer, x = make("dylora", "linear")
    layer.switch.dropout = _dropout_with_block(layer, last=False)
    first, end = trained_rows(layer.options, layer.switch.dropout.for_layer("").dylora_position)
    layer(x).sum().backward()
    down, up = (layer.slices.buffer.gradient(layer.slices.positions[name]) for name in ("down", "up"))
    rows = down.norm(dim=1) > 0
    assert rows.tolist() == [first <= row < end for row in range(RANK)]
    assert (up.norm(dim=0) > 0).tolist() == rows.tolist()


def _dropout_with_block(layer: Any, *, last: bool) -> DropoutState:
    states = (DropoutState(DropoutRates(), 1, (counter,)) for counter in range(1000))
    return next(c for c in states if (trained_rows(layer.options, c.for_layer("").dylora_position)[1] == RANK) == last)


def test_dylora_draws_every_block_equally_often() -> None:
    draws = [
        trained_rows(Options(rank=8, unit=3), DropoutState(DropoutRates(), 5, (n,)).for_layer("").dylora_position)
        for n in range(3000)
    ]
    counts = {rows: draws.count(rows) for rows in set(draws)}
    assert set(counts) == {(0, 3), (3, 6), (6, 8)}
    assert all(abs(count - 1000) < 5 * 26 for count in counts.values())  # five standard deviations


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_a_bias_in_the_file_applies_to_a_layer_without_one(dtype: torch.dtype, tolerance: float) -> None:
    base = nn.Linear(6, 4, bias=False).to(dtype).requires_grad_(False)
    weights = {"diff": torch.randn(4, 6), "bias": torch.randn(4)}
    slices = Slices(FlatBuffer(list(weights.values()), torch.device("cpu")), {"diff": 0, "bias": 1})
    switch = AdapterSwitch(strength=0.5)
    layer = AdaptedLayer(base, FAMILIES["full"], slices, options=Options(), switch=switch)
    x = torch.randn(3, 6).to(dtype)
    expected = x.double() @ (base.weight.double() + 0.5 * weights["diff"]).t() + 0.5 * weights["bias"]
    assert relative(layer(x), expected) < tolerance


@pytest.mark.parametrize(
    ("sizes", "rank"), [({"q": 2, "p": 3, "r": 4}, 2), ({"p": 3, "r": 4}, 3), ({"r": 4}, 4), ({"o": 5, "i": 6}, 1)]
)
def test_the_rank_of_a_file_is_the_one_that_alpha_is_divided_by_and_1_without_any(
    sizes: dict[str, int], rank: int
) -> None:
    assert rank_of(sizes) == rank


# --- initial weights ----------------------------------------------------------------------------


def has_deviation(tensor: torch.Tensor, deviation: float) -> bool:
    """Whether it has mean 0 and this standard deviation, within five standard errors."""
    count = tensor.numel()
    is_centred = abs(float(tensor.mean())) <= 5 * deviation / count**0.5
    return is_centred and float(tensor.std()) == pytest.approx(deviation, rel=5 / (2 * count) ** 0.5)


@pytest.mark.parametrize("use_tucker", [False, True])
@pytest.mark.parametrize("has_scalar", [False, True])
def test_loha_starts_with_the_deviations_of_lycoris(use_tucker: bool, has_scalar: bool) -> None:
    """0.1 for w1_a and the cores, 1 for w1_b and w2_b; w2_a is 0, or has 0.1 if a factor is trained."""
    family = family_of(AdapterSpec(family="loha", has_scalar=has_scalar))
    options = Options(rank=32, use_tucker=use_tucker)
    weights = family.init_weights(nn.Conv2d(64, 96, 3), options, torch.Generator().manual_seed(0))
    expected = {"w1_a": 0.1, "w1_b": 1.0, "w2_a": 0.1 * has_scalar, "w2_b": 1.0}
    expected |= {"t1": 0.1, "t2": 0.1} if use_tucker else {}
    assert weights.keys() == expected.keys() | ({"scalar"} if has_scalar else set())
    assert {name for name in expected if has_deviation(weights[name], expected[name])} == expected.keys()


def test_a_trained_factor_starts_at_zero_and_no_matrix_does() -> None:
    """One number; LoRA's up matrix is then kaiming-uniform with its own bound, 1 / √rank."""
    for family in ("lora", "loha", "lokr", "glora"):
        layer, _ = make(f"{family}_scalar", "linear", trained=False)
        weights = layer.slices.fp32()
        assert weights["scalar"].tolist() == [0.0]
        assert all(float(tensor.abs().max()) > 0 for name, tensor in weights.items() if name != "scalar")
    up = make("lora_scalar", "linear", trained=False)[0].slices.fp32()["up"]
    assert 0.95 * RANK**-0.5 < float(up.abs().max()) <= RANK**-0.5
    assert has_deviation(up, (3 * RANK) ** -0.5)


# --- dropped rows -------------------------------------------------------------------------------

ROW_CASES = [
    name
    for name, case in CASES.items()
    if case.is_dora or (case.family in families_with("rank_dropout") and not isinstance(FAMILIES[case.family], Lora))
]


@pytest.mark.parametrize("kind", ["linear", "conv3x3"])
@pytest.mark.parametrize("case", ROW_CASES)
def test_rank_dropout_drops_whole_output_channels(case: str, kind: str) -> None:
    """Remaining channels are scaled by 1 / (1 − p), and dropped ones get no gradient."""
    if not CASES[case].mathematics.fits(LAYERS[kind][0]()):
        pytest.skip("webuis read this family on linear layers only")
    layer, x = make(case, kind)
    base, axis = layer.base_layer(x), 1 if kind == "conv3x3" else -1
    whole = layer(x).detach() - base
    layer.switch.dropout = DropoutState(DropoutRates(rank_dropout=0.4), 1, (0,))
    change = layer(x) - base
    kept = change.detach().transpose(0, axis).flatten(1).norm(dim=1) > 1e-4
    assert 0 < int(kept.sum()) < len(kept)
    shape = [1] * change.dim()
    shape[axis] = len(kept)
    expected = whole * kept.reshape(shape) / 0.6
    torch.testing.assert_close(change.detach(), expected, rtol=1e-4, atol=1e-4)  # differences of rounded outputs
    (change * ~kept.reshape(shape)).sum().backward()
    gradient = layer.slices.buffer.parameter.grad
    assert gradient is None or float(gradient.abs().max()) == 0.0


@pytest.mark.parametrize("case", ROW_CASES)
def test_rank_dropout_keeps_the_mean(case: str) -> None:
    layer, x = make(case, "linear")
    plain, answers = layer(x).detach(), []
    for draw in range(600):
        layer.switch.dropout = DropoutState(DropoutRates(rank_dropout=0.25), 1, (draw,))
        answers.append(layer(x).detach())
    seen = torch.stack(answers)
    # Five standard deviations, and the rounding of channels that hardly change.
    assert float(((seen.mean(0) - plain).abs() - 5 * seen.std(0) / 600**0.5).max()) < 1e-4


# --- shapes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "conv3x3"])
@pytest.mark.parametrize("case", [name for name in CASES if name.endswith("_dora")])
def test_dora_has_one_magnitude_per_input_channel(case: str, kind: str) -> None:
    """A1111 and Forge would silently misread magnitudes per output channel, as other tools write them."""
    layer, _ = make(case, kind)
    weight: Any = layer.base_layer.weight
    assert layer.state()["dora_scale"].shape == (1, weight.shape[1], *(1,) * (weight.dim() - 2))


def test_dora_keeps_its_magnitudes() -> None:
    layer, _ = make("lora_dora", "conv3x3")
    weight: Any = layer.base_layer.weight
    lengths = torch.linalg.vector_norm(weight + layer.diff_weight(), dim=(0, 2, 3))
    torch.testing.assert_close(lengths, layer.slices.fp32()["magnitude"].flatten())


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in families_with("dora")])
def test_dora_is_refused_for_other_families(family: str) -> None:
    with pytest.raises(AdapterError, match=f"DoRA does not work with {family}"):
        family_of(AdapterSpec(family=family, is_dora=True))


def test_factorisation_matches_lycoris() -> None:
    """The examples of its documentation, and its two guarantees."""
    assert factorisation(128, -1) == (8, 16)
    assert factorisation(250, -1) == (10, 25)
    assert factorisation(360, 4) == (4, 90)
    assert factorisation(360, 7) == (6, 60)
    assert factorisation(512, 1024) == (16, 32)
    assert factorisation(128, 0) == (8, 16)
    assert factorisation(128, 32) == (4, 32)
    assert factorisation(1, -1) == (1, 1)
    for size in range(1, 40):  # sides next to each other, such as 3 and 4
        pairs = [(small, size // small) for small in range(1, size + 1) if size % small == 0 and small**2 <= size]
        assert factorisation(size, -1) == pairs[-1]
    assert all(isinstance(side, int) for factor in (-1, 4, 32) for side in factorisation(128, factor)), "sizes"
    for size in DIMENSIONS:
        for factor in (-1, 4, 8, 16):
            small, big = factorisation(size, factor)
            assert small * big == size and small <= big and (factor < 0 or small <= factor or size // factor == small)


@pytest.mark.parametrize("rank", range(1, 10))
@pytest.mark.parametrize("decompose_both", [False, True])
@pytest.mark.parametrize("full_matrix", [False, True])
def test_lokr_decomposes_the_matrices_that_lycoris_does(rank: int, decompose_both: bool, full_matrix: bool) -> None:
    """LyCORIS: a matrix is decomposed if rank < max(its sides) / 2. Here w1 is (8, 4), and w2 (12, 8) per position."""
    options = Options(rank, factor=8, decompose_both=decompose_both, full_matrix=full_matrix)
    shapes = lokr_shapes((96, 32, 3, 3), options)
    is_first_small = decompose_both and rank < 8 / 2 and not full_matrix
    is_second_small = rank < 12 / 2 and not full_matrix
    first = {"w1_a": (8, rank), "w1_b": (rank, 4)} if is_first_small else {"w1": (8, 4)}
    second = {"w2_a": (12, rank), "w2_b": (rank, 8 * 9)} if is_second_small else {"w2": (12, 8, 3, 3)}
    assert shapes == {**first, **second}


def test_lokr_decomposes_convolutions_larger_than_1x1_by_tucker() -> None:
    options = Options(2, factor=8, use_tucker=True)
    wide, small = lokr_shapes((96, 32, 3, 3), options), lokr_shapes((96, 32, 1, 1), options)
    assert wide == {"w1": (8, 4), "w2_a": (2, 12), "w2_b": (2, 8), "t2": (2, 2, 3, 3)}
    assert small == {"w1": (8, 4), "w2_a": (12, 2), "w2_b": (2, 8)}


@pytest.mark.parametrize("case", ["oft_bounded_rescaled", "boft_bounded_rescaled"])
@pytest.mark.parametrize(("kind", "shape"), [("linear", (40, 1)), ("conv3x3", (16, 1, 1, 1))])
def test_the_rescale_has_the_shape_that_the_webuis_multiply_with(case: str, kind: str, shape: tuple[int, ...]) -> None:
    layer, _ = make(case, kind, trained=False)
    rescale = layer.state()["rescale"]
    assert rescale.shape == shape and bool((rescale == 1).all())


@pytest.mark.parametrize("size", DIMENSIONS)
@pytest.mark.parametrize("most", [2, 4, 8, 16])
def test_butterfly_fits_every_layer_of_stable_diffusion(size: int, most: int) -> None:
    """LyCORIS refuses 320 outputs with factor 8."""
    stages, width = butterfly(size, most)
    assert width <= most and width % 2 == 0 and size % (width * 2 ** (stages - 1)) == 0 and stages >= 2


@pytest.mark.parametrize("most", range(1, 10))
@pytest.mark.parametrize("size", [2, 6, 12, 14, 16, 40, 320])
def test_butterfly_has_the_widest_even_block_and_all_stages_that_fit(size: int, most: int) -> None:
    """The width is at least 2; stage i joins 2ⁱ blocks."""
    widths = [width for width in (2, 4, 6, 8) if size % width == 0 and width <= max(most, 2)]
    stages = [stage for stage in range(10) if size % (widths[-1] * 2**stage) == 0]
    assert butterfly(size, most) == (len(stages), widths[-1])


def test_butterfly_reaches_every_output_from_every_input_where_sizes_are_powers_of_two() -> None:
    layer, _ = make("boft", "linear")
    base = torch.eye(32)
    blocks = torch.randn(4, 8, 4, 4) * 0.3  # width 4, and 4 · 2³ = 32
    assert butterfly(32, 4) == (4, 4)
    turned = base + layer.family.diff_weight({"blocks": blocks}, Options(), base)
    assert int((turned.abs() > 1e-12).sum()) == 32 * 32


@pytest.mark.parametrize("build", [nn.Linear, lambda i, o: nn.Conv2d(i, o, 3)], ids=["linear", "conv"])
def test_rotations_are_of_the_outputs_in_blocks_that_divide_them(build: Any) -> None:
    """10 outputs at rank 4 are five blocks of 2; a butterfly has one stage of them, and needs an even number."""
    layer, generator = build(24, 10), torch.Generator()
    assert FAMILIES["oft"].init_weights(layer, Options(rank=4), generator)["blocks"].shape == (5, 2, 2)
    assert FAMILIES["boft"].init_weights(layer, Options(rank=4), generator)["blocks"].shape == (1, 5, 2, 2)
    fitting = {sizes: FAMILIES["boft"].fits(build(*sizes)) for sizes in ((4, 3), (6, 9), (3, 4), (9, 6), (4, 8))}
    assert fitting == {(4, 3): False, (6, 9): False, (3, 4): True, (9, 6): True, (4, 8): True}


def test_a_rotation_from_a_file_without_alpha_is_not_bounded() -> None:
    for family in ("oft", "boft"):
        assert FAMILIES[family].with_fixed(Options(constraint=0.5), {}).constraint == 0.0
        assert FAMILIES[family].with_fixed(Options(), {"alpha": torch.tensor(0.25)}).constraint == 0.25


@pytest.mark.parametrize("case", ["oft", "boft"])
def test_rotations_keep_lengths_and_angles(case: str) -> None:
    layer, _ = make(case, "conv3x3")
    weight: Any = layer.base_layer.weight
    before, after = weight.flatten(1), (weight + layer.diff_weight()).flatten(1)
    torch.testing.assert_close(after.t() @ after, before.t() @ before, rtol=1e-4, atol=1e-5)


def test_constraint_bounds_the_rotation() -> None:
    blocks = torch.randn(6, 4, 4)
    bound = 0.1
    turn = cayley_minus_identity(blocks, bound)
    # R − I = 2Q (I − Q)⁻¹ and Q is skew, so ‖R − I‖ ≤ 2‖Q‖.
    assert 1.9 * bound < float(turn.norm()) <= 2 * bound
    assert float(cayley_minus_identity(blocks, 0.0).norm()) > 10 * bound


def test_gradient_of_a_bounded_rotation_at_the_start_is_that_of_an_unbounded_one() -> None:
    """R − I = 2Q to first order, Q = blocks − blocksᵀ: 2 for the entry, −2 for its mirror image. No bound is near."""
    expected = torch.zeros(2, 4, 4)
    expected[0, 0, 1], expected[0, 1, 0] = 2.0, -2.0
    for bound in (0.0, 0.01):
        blocks = torch.zeros(2, 4, 4, requires_grad=True)
        (gradient,) = torch.autograd.grad(cayley_minus_identity(blocks, bound)[0, 0, 1], blocks)
        torch.testing.assert_close(gradient, expected)


# --- whole models -------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", network.TARGETS)
@pytest.mark.parametrize("family", network.FAMILIES)
def test_every_family_trains_on_a_whole_model_with_every_target(family: str, targets: str) -> None:
    model = tiny_model()
    before = model.predict()
    spec = AdapterSpec(family=family, rank=2, alpha=1.0, targets=targets, train_norm=targets != "attention")
    adapter = inject(model, spec, seed=1)
    assert torch.equal(model.predict(), before), "no effect at the start"
    optimizer = torch.optim.AdamW([p for group in adapter.groups.values() for p in group], lr=1e-2)
    losses = []
    for _ in range(6):
        loss = (model.predict() - 0.5).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0], (
        f"{losses}: diverges at learning rate 1e-2; scale ΔW so that a step of 0.01 of each number is small"
    )
    state = adapter.state()
    adapter.remove()
    assert torch.equal(model.predict(), before), "nothing is left behind"
    again = inject(model, spec, seed=2)
    again.load_state(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.state().items())


def test_norms_are_trained_in_the_unet_only_and_under_names_of_both_hosts() -> None:
    model = tiny_model()
    state = inject(model, AdapterSpec(rank=2, targets="all", train_norm=True), seed=1).state()
    norms = {key for key in state if key.endswith(("w_norm", "b_norm"))}
    assert all(key.startswith("lora_unet_") for key in norms)
    assert "lora_unet_down_blocks_0_resnets_0_norm1.w_norm" in norms
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_norm2.b_norm" in norms


def test_full_target_adds_the_outer_layers() -> None:
    model = tiny_model()
    outer = {"conv_in", "conv_out", "time_embedding_linear_1", "time_embedding_linear_2"}
    found = {
        targets: {
            key.removeprefix("lora_unet_")
            for key in inject(tiny_model(), AdapterSpec(rank=2, targets=targets), seed=1).layers
        }
        for targets in ("all", "full")
    }
    assert found["full"] - found["all"] == outer
    del model


@pytest.mark.parametrize("targets", network.TARGETS)
@pytest.mark.parametrize("family", network.FAMILIES)
def test_openclip_attention_is_adapted_whole_or_not_at_all(family: str, targets: str) -> None:
    """A1111 silently ignores OpenCLIP's attention unless q, k, v and out are all in the file."""
    tiny = tiny_model()
    model = TinyModel(tiny.unet, tiny.text_encoders, SimpleNamespace(architecture="sd2"))
    keys = inject(model, AdapterSpec(family=family, rank=2, targets=targets), seed=1).layers
    attention = {key for key in keys if "self_attn" in key}
    assert attention == {
        f"lora_te_text_model_encoder_layers_{number}_self_attn_{part}_proj"
        for number in range(2)
        for part in ("q", "k", "v", "out")
    }


def test_ia3_adapts_keys_values_and_the_end_of_feed_forward_blocks() -> None:
    adapter = inject(tiny_model(), AdapterSpec(family="ia3"), seed=1)
    endings = {key.rsplit("_", 2)[-2] + "_" + key.rsplit("_", 1)[-1] for key in adapter.layers}
    assert endings == {"to_k", "to_v", "net_2", "k_proj", "v_proj", "mlp_fc2"}
    sides = {key: layer.options.on_input for key, layer in adapter.layers.items()}
    assert all(side == key.endswith(("net_2", "fc2")) for key, side in sides.items())


@pytest.mark.parametrize("targets", ["all", "full"])
def test_ia3_of_all_layers_adapts_every_linear_layer_and_no_convolution(targets: str) -> None:
    model = tiny_model()
    linear = {name for name, module in model.unet.named_modules() if isinstance(module, nn.Linear)}
    inner = {name for name in linear if targets == "full" or not name.startswith(("time_embedding", "add_embedding"))}
    adapter = inject(model, AdapterSpec(family="ia3", targets=targets, text_encoder=False), seed=1)
    assert {target.name for target in adapter._targets.values()} == inner and inner > {
        "mid_block.resnets.0.time_emb_proj"
    }


def test_ia3_side_is_stored_in_the_file(tmp_path: Path) -> None:
    for case, is_input in (("ia3", False), ("ia3_input", True)):
        layer, _ = make(case, "linear")
        write_adapter(tmp_path / "a.safetensors", layer.state(), metadata={}, precision="fp16")
        written = read_adapter(tmp_path / "a.safetensors").state["on_input"]
        assert written.dtype == torch.bool and bool(written) is is_input


def test_conv_rank_applies_to_convolutions_larger_than_1x1() -> None:
    spec = AdapterSpec(rank=8, alpha=8.0, targets="all", conv_rank=2, conv_alpha=1.0)
    state = inject(tiny_model(), spec, seed=1).state()
    for key, tensor in state.items():
        if key.endswith("lora_down.weight"):
            is_wide = tensor.dim() == 4 and tensor.shape[-1] == 3
            assert tensor.shape[0] == (2 if is_wide else 8), key
            assert float(state[key.replace("lora_down.weight", "alpha")]) == (1.0 if is_wide else 8.0)
