"""The graft: every parameter is a view of the checkpoint, outputs match ldm, and nothing is written to."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
import torch
from torch import Tensor

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models import graft as graft_module
from lib_lora_train.models import library_compat as compat
from lib_lora_train.models.architecture import Architecture, add_text_model_prefix
from lib_lora_train.models.graft import (
    Graft,
    alias,
    graft,
    rebind,
    release_weights,
)
from lib_lora_train.models.infer_spec import infer_spec
from lib_lora_train.models.kinds.registry import kind_of
from lib_lora_train.models.kinds.stable_diffusion import unet_name_mapper
from tests.stand_ins import ldm_reference
from tests.stand_ins.tiny_models import STABLE_DIFFUSION, full_shapes, tiny_spec, tiny_tensors

ARCHITECTURES: tuple[Architecture, ...] = STABLE_DIFFUSION

# Only the order of sums differs from ldm's: in float64 that leaves 1e-15, so 1e-12 proves the same function;
# in float32, which is trained in, it leaves 2e-6 after SDXL's seventy transformer blocks.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def in_dtype(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    found: Architecture = request.param
    return found


@pytest.fixture(scope="module")
def tensors(architecture: Architecture) -> dict[str, Tensor]:
    return tiny_tensors(architecture)


@pytest.fixture(params=TOLERANCE, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


@pytest.fixture(scope="module")
def grafted(tensors: dict[str, Tensor]) -> Graft:
    return graft(tensors, tiny_spec(tensors))


def test_graft_matches_every_tensor_of_published_checkpoints(architecture: Architecture) -> None:
    """Counts measured on the published files; SD2's text encoder runs 23 of its 24 layers."""
    counts: dict[Architecture, dict[str, int]] = {
        "sd1": {"unet": 686, "vae": 248, "text_encoder_1": 196},
        "sd2": {"unet": 686, "vae": 248, "text_encoder_1": 372},
        "sdxl": {"unet": 1680, "vae": 248, "text_encoder_1": 196, "text_encoder_2": 517},
    }
    shapes = full_shapes(architecture)
    parts = tuple(kind_of(architecture).networks(infer_spec(shapes)))
    graft_module.check_networks(parts, add_text_model_prefix(shapes))  # raises for names and shapes that do not match
    assert {part.label: len(list(part.module.parameters())) for part in parts} == counts[architecture]


def test_every_weight_is_shared(grafted: Graft, tensors: dict[str, Tensor]) -> None:
    parameters = {
        f"{label}.{name}": parameter
        for label, module in _modules(grafted).items()
        for name, parameter in module.named_parameters()
    }
    rows = {row.name: row for row in grafted.report if row.status == "shared"}
    assert rows.keys() == parameters.keys()
    for name, parameter in parameters.items():
        source = tensors[rows[name].source]
        assert parameter.untyped_storage().data_ptr() == source.untyped_storage().data_ptr(), name
        assert not parameter.requires_grad


def test_the_report_accounts_for_every_tensor(
    grafted: Graft, tensors: dict[str, Tensor], architecture: Architecture
) -> None:
    assert {row.source for row in grafted.report if row.source} == tensors.keys()
    unused = Counter(row.reason for row in grafted.report if row.status == "unused")
    layer = {"SD2 reads the layer before it": 12}
    texts = {"sd1": 0, "sd2": 2, "sdxl": 1}[architecture]
    expected = (layer if architecture == "sd2" else {}) | (
        {"only for comparing texts with images": texts} if texts else {}
    )
    assert unused == expected
    assert not [row for row in grafted.report if row.status == "copied"]


def test_unet_output_matches_ldm(tensors: dict[str, Tensor], architecture: Architecture, dtype: torch.dtype) -> None:
    tensors = in_dtype(tensors, dtype)
    spec = tiny_spec(tensors)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 16, 8, generator=generator, dtype=dtype)
    context = torch.randn(2, 77, spec.unet["cross_attention_dim"], generator=generator, dtype=dtype)
    timesteps = torch.tensor([3, 981])
    added, vector = {}, {}
    if architecture == "sdxl":
        pooled = torch.randn(2, spec.text_encoders[1].config["projection_dim"], generator=generator, dtype=dtype)
        sizes = torch.tensor([[128.0, 64, 0, 0, 128, 64], [512, 300, 8, 16, 128, 64]], dtype=dtype)
        added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
        vector = {"pooled": pooled, "sizes": sizes}
    with torch.no_grad():
        ours = graft(tensors, spec).unet(x, timesteps, encoder_hidden_states=context, **added).sample
    theirs = ldm_reference.unet(tensors, x, timesteps, context, spec.unet["attention_head_dim"], **vector)
    assert distance(ours, theirs) < TOLERANCE[dtype]


def test_vae_output_matches_ldm(tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    tensors = in_dtype(tensors, dtype)
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(1, 3, 64, 32, generator=generator, dtype=dtype)
    latents = torch.randn(1, 4, 8, 4, generator=generator, dtype=dtype)
    vae = graft(tensors, tiny_spec(tensors)).vae
    with torch.no_grad():
        encoded, decoded = vae.encode(images).latent_dist.parameters, vae.decode(latents).sample
    assert distance(encoded, ldm_reference.vae_moments(tensors, images)) < TOLERANCE[dtype]
    assert distance(decoded, ldm_reference.vae_decode(tensors, latents)) < TOLERANCE[dtype]


def test_text_encoder_output_matches_clip(grafted: Graft, tensors: dict[str, Tensor]) -> None:
    """In float32 only: transformers 4.46 cannot build its causal mask in float64."""
    ids = torch.randint(0, 49405, (2, 77), generator=torch.Generator().manual_seed(3))
    for encoder, spec in zip(grafted.text_encoders, tiny_spec(tensors).text_encoders, strict=True):
        reference = ldm_reference.clip_states if spec.layout == "clip" else ldm_reference.open_clip_states
        prefix = f"{spec.prefix}text_model." if spec.layout == "clip" else spec.prefix
        with torch.no_grad():
            ours = compat.text_hidden_states(encoder, ids)
        theirs = reference(tensors, prefix, ids, spec.config["num_attention_heads"])
        assert len(ours) == spec.config["num_hidden_layers"] + 1
        for mine, its in zip(ours, theirs, strict=False):  # SD2: the file has one layer more
            assert distance(mine, its) < TOLERANCE[torch.float32]


def test_inference_tensors_can_be_trained_on(architecture: Architecture) -> None:
    with torch.inference_mode():
        tensors = {name: tensor.clone() for name, tensor in tiny_tensors(architecture, shallow=True).items()}
        grafted = graft(tensors, tiny_spec(tensors))
    assert all(tensor.is_inference() for tensor in tensors.values())
    parameters = [p for module in _modules(grafted).values() for p in module.parameters()]
    assert not any(parameter.is_inference() for parameter in parameters)
    _backward(grafted, tensors)


def test_training_changes_neither_weights_nor_requires_grad(tensors: dict[str, Tensor]) -> None:
    owned = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    before = _digest(tensors)
    _backward(graft(owned, tiny_spec(tensors)), tensors)
    assert _digest(tensors) == before
    assert all(tensor.requires_grad and tensor.grad is None for tensor in owned.values())
    for tensor in tensors.values():
        tensor.requires_grad_(False)


def test_a_stray_dtype_is_converted_and_reported(tensors: dict[str, Tensor]) -> None:
    half = {name: tensor.half() for name, tensor in tensors.items()}
    half["model.diffusion_model.out.0.weight"] = tensors["model.diffusion_model.out.0.weight"]
    grafted = graft(half, tiny_spec(tensors))
    copied = [row for row in grafted.report if row.status == "copied"]
    assert [(row.name, row.reason) for row in copied] == [
        ("unet.conv_norm_out.weight", "torch.float32 among torch.float16")
    ]
    assert {parameter.dtype for parameter in grafted.unet.parameters()} == {torch.float16}


@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.uint8])
def test_weights_that_cannot_be_computed_with_are_refused(storage: torch.dtype) -> None:
    tensors = tiny_tensors("sd1")
    name = "model.diffusion_model.time_embed.0.weight"
    with pytest.raises(ModelError, match="cannot be trained on"):
        graft({**tensors, name: tensors[name].to(storage)}, tiny_spec(tensors))


def test_weights_on_meta_are_refused() -> None:
    tensors = tiny_tensors("sd1")
    name = "first_stage_model.quant_conv.bias"
    with pytest.raises(ModelError, match="not in memory"):
        graft({**tensors, name: tensors[name].to("meta")}, tiny_spec(tensors))


def test_missing_unknown_and_misshapen_tensors_are_named() -> None:
    tensors = tiny_tensors("sd1")
    spec = tiny_spec(tensors)
    broken = dict(tensors)
    del broken["model.diffusion_model.out.2.bias"]
    broken["model.diffusion_model.extra.weight"] = torch.zeros(1)
    broken["first_stage_model.quant_conv.bias"] = torch.zeros(3)
    with pytest.raises(ModelError) as caught:
        graft(broken, spec)
    for part in ("out.2.bias is missing", "extra.weight is unknown", "quant_conv.bias is (3,)", "3 tensors"):
        assert part in str(caught.value)


def test_training_leftovers_are_ignored() -> None:
    tensors = tiny_tensors("sd1")
    leftovers = ("first_stage_model.loss.logvar", "cond_stage_model.transformer.text_model.embeddings.position_ids")
    spec = tiny_spec(tensors)
    report = graft({**tensors, **{name: torch.zeros(1) for name in leftovers}}, spec).report
    assert {row.source for row in report if row.status == "unused"} == set(leftovers)


def test_old_clip_names_without_text_model_are_read() -> None:
    tensors = tiny_tensors("sd1")
    flat = {name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in tensors.items()}
    spec = tiny_spec(flat)
    assert len(graft(flat, spec).report) == len(tensors) + 1  # and the position numbers


def test_names_agree_with_diffusers_own_converter(architecture: Architecture) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    shapes = full_shapes(architecture)
    spec = infer_spec(shapes)
    meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    converted = convert_ldm_unet_checkpoint(dict(meta), dict(spec.unet))
    to_ldm = unet_name_mapper(spec)
    names = {name for name, _ in compat.build_unet(spec.unet).named_parameters()}
    assert names == converted.keys()
    assert all(converted[name] is meta[f"model.diffusion_model.{to_ldm(name)}"] for name in names)


def test_module_names_map_like_parameter_names() -> None:
    to_ldm = unet_name_mapper(infer_spec(full_shapes("sdxl")))
    assert to_ldm("down_blocks.1.attentions.0.proj_in") == "input_blocks.4.1.proj_in"
    assert to_ldm("up_blocks.0.upsamplers.0.conv") == "output_blocks.2.2.conv"
    assert to_ldm("down_blocks.0.downsamplers.0.conv") == "input_blocks.3.0.op"
    assert to_ldm("mid_block.resnets.1.time_emb_proj") == "middle_block.2.emb_layers.1"
    assert to_ldm("add_embedding.linear_2") == "label_emb.0.2"


def test_alias_keeps_offset_and_strides() -> None:
    base = torch.arange(12.0).view(3, 4)
    view = base.t()[1:]
    assert torch.equal(alias(view), view)
    assert alias(view).data_ptr() == view.data_ptr()


# --- tools ----------------------------------------------------------------------------------------


def _modules(grafted: Graft) -> dict[str, torch.nn.Module]:
    texts = {f"text_encoder_{i}": module for i, module in enumerate(grafted.text_encoders, start=1)}
    return {"unet": grafted.unet, "vae": grafted.vae, **texts}


def _backward(grafted: Graft, tensors: dict[str, Tensor]) -> None:
    """A backward pass through every network, as a trained adapter in front of it would cause."""
    spec = tiny_spec(tensors)
    nudge = torch.zeros((), requires_grad=True)
    hidden = torch.zeros(1, 77, spec.unet["cross_attention_dim"]) + nudge
    added = {}
    if spec.architecture == "sdxl":
        width = spec.text_encoders[1].config["projection_dim"]
        added = {"added_cond_kwargs": {"text_embeds": torch.zeros(1, width), "time_ids": torch.zeros(1, 6)}}
    loss = grafted.unet(torch.ones(1, 4, 8, 8), 5, encoder_hidden_states=hidden, **added).sample.square().mean()
    for encoder in grafted.text_encoders:
        embedding = compat.text_transformer(encoder).embeddings.token_embedding
        hook = embedding.register_forward_hook(lambda _module, _inputs, output: output + nudge)
        loss = loss + compat.text_hidden_states(encoder, torch.ones(1, 77, dtype=torch.long))[-1].square().mean()
        hook.remove()
    torch.autograd.backward(loss)
    assert nudge.grad is not None and torch.isfinite(nudge.grad)


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# --- following the owner --------------------------------------------------------------------------


def parameters_of(grafted: Graft) -> dict[str, Tensor]:
    modules = {"unet": grafted.unet, "vae": grafted.vae, **{f"t{i}": m for i, m in enumerate(grafted.text_encoders)}}
    return {f"{part}.{name}": p for part, module in modules.items() for name, p in module.named_parameters()}


def places_of(grafted: Graft) -> dict[str, int]:
    return {name: p.untyped_storage().data_ptr() for name, p in parameters_of(grafted).items()}


def test_rebind_changes_nothing_if_no_tensor_moved(tensors: dict[str, Tensor]) -> None:
    grafted = graft(tensors, tiny_spec(tensors))
    before = places_of(grafted)
    assert rebind(grafted.slots, tensors) == 0
    assert places_of(grafted) == before


def test_rebind_points_parameters_at_replaced_tensors(tensors: dict[str, Tensor]) -> None:
    grafted = graft(tensors, tiny_spec(tensors))
    before = {name: p.clone() for name, p in parameters_of(grafted).items()}
    with torch.inference_mode():  # Forge and reForge make such tensors when they move a model or bake a LoRA
        renewed = {name: tensor.clone() for name, tensor in tensors.items()}
    assert rebind(grafted.slots, renewed) == len(grafted.slots) == len(before)
    after = parameters_of(grafted)
    theirs = {tensor.untyped_storage().data_ptr() for tensor in renewed.values()}
    assert all(p.untyped_storage().data_ptr() in theirs for p in after.values())
    assert all(torch.equal(p, before[name]) for name, p in after.items())
    assert not any(p.is_inference() or p.requires_grad for p in after.values())


def test_released_storage_is_freed_and_rebind_restores_it(tensors: dict[str, Tensor]) -> None:
    grafted = graft(tensors, tiny_spec(tensors))
    before = {name: p.clone() for name, p in parameters_of(grafted).items()}
    release_weights(grafted.slots)
    assert all(p.numel() == p.untyped_storage().nbytes() == 0 for p in parameters_of(grafted).values())
    assert rebind(grafted.slots, tensors) == len(grafted.slots)
    assert all(torch.equal(p, before[name]) for name, p in parameters_of(grafted).items())


def half_text(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as Forge has them on the processor: text encoders in 16 bit."""
    prefixes = ("cond_stage_model.", "conditioner.")
    return {name: tensor.half() if name.startswith(prefixes) else tensor for name, tensor in tensors.items()}


def test_requested_dtype_copies_only_other_dtypes(tensors: dict[str, Tensor]) -> None:
    given = half_text(tensors)
    report = graft(given, tiny_spec(tensors), torch.float32).report
    for row in report:
        if row.status in ("shared", "copied"):
            half = given[row.source].dtype == torch.float16
            assert (row.status, row.reason) == (
                ("copied", "torch.float16, computed in torch.float32") if half else ("shared", "")
            )


def test_a_converted_copy_is_created_once_and_shares_no_storage(tensors: dict[str, Tensor]) -> None:
    given = half_text(tensors)
    grafted = graft(given, tiny_spec(tensors), torch.float32)
    places, kept = places_of(grafted), sum(slot.is_copy for slot in grafted.slots)
    assert 0 < kept < len(grafted.slots)
    release_weights(grafted.slots)
    theirs = {tensor.untyped_storage().data_ptr() for tensor in given.values()}
    left = {p.untyped_storage().data_ptr() for p in parameters_of(grafted).values() if p.numel()}
    assert len(left) == kept and not left & theirs
    renewed = {name: tensor.clone() for name, tensor in given.items()}
    assert rebind(grafted.slots, renewed) == len(grafted.slots) - kept
    for name, p in parameters_of(grafted).items():
        assert (p.untyped_storage().data_ptr() == places[name]) == name.startswith("t")


def test_rebind_to_unusable_tensors_changes_nothing(tensors: dict[str, Tensor]) -> None:
    grafted = graft(tensors, tiny_spec(tensors))
    before = places_of(grafted)
    name = next(reversed(tensors))
    for given in (tensors[name].to("meta"), tensors[name][:1], tensors[name].to(torch.int8)):
        with pytest.raises(ModelError, match=f"{name} is missing, not in memory, or different"):
            rebind(grafted.slots, {**{n: t.clone() for n, t in tensors.items()}, name: given})
        assert places_of(grafted) == before
