"""The layers of each target preset and their names in files, on full-size models without weights."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from transformers import CLIPTextConfig, CLIPTextModel

from lib_lora_train.adapters.files.decode import aliases
from lib_lora_train.adapters.inject import Adapter, inject
from lib_lora_train.adapters.layer_names import text_key
from lib_lora_train.adapters.registry import FAMILIES, AdapterSpec
from lib_lora_train.models.architecture import Architecture
from lib_lora_train.models.infer_spec import infer_spec
from lib_lora_train.models.kinds.registry import kind_of
from lib_lora_train.models.unet_layers import ldm_layer_names, unet_keys
from tests.stand_ins.tiny_models import full_shapes

SIZES: tuple[Architecture, ...] = ("sd1", "sd2", "sdxl")
TEXT_LAYERS = {"sd1": (12,), "sd2": (24,), "sdxl": (12, 32)}
# kohya's own counts: LoRA (standard) and LoCon (all) on the UNet, then one per text encoder.
UNET_COUNTS = {"sd1": (192, 278), "sd2": (192, 278), "sdxl": (722, 788)}
TEXT_COUNTS = {"sd1": (72,), "sd2": (138,), "sdxl": (72, 192)}
# The diffusers' names of UNet layers that A1111 1.10.1 places; besides, it and Forge take every original (ldm) name.
A1111_PLACES = re.compile(
    r"lora_unet_(conv_in|conv_out|time_embedding_linear_[12]"
    r"|(down_blocks_\d+|mid_block|up_blocks_\d+)_(attentions|resnets)_\d+_.+"
    r"|down_blocks_\d+_downsamplers_0_conv|up_blocks_\d+_upsamplers_0_conv)$"
)

families = pytest.mark.parametrize("architecture", SIZES)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Full-size models on the meta device: shapes and names, no memory."""
    with torch.device("meta"):
        return {
            architecture: SimpleNamespace(
                unet=UNet2DConditionModel(**infer_spec(full_shapes(architecture)).unet),
                text_encoders=tuple(_text_encoder(count) for count in TEXT_LAYERS[architecture]),
                spec=SimpleNamespace(architecture=architecture),
            )
            for architecture in SIZES
        }


def _text_encoder(layers: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4)
    )


def adapted(model: Any, targets: str) -> tuple[Adapter, dict[str, str]]:
    """The adapter and the path of each of its modules in the model; the adapter is removed again."""
    adapter = inject(model, AdapterSpec(rank=1, alpha=1.0, targets=targets), seed=0)
    places = {key: target.name for key, target in adapter._targets.items()}
    adapter.remove()
    return adapter, places


def count(adapter: Adapter, prefix: str) -> int:
    return sum(key.startswith(prefix) for key in adapter.layers)


@families
def test_unet_module_counts_match_kohya(models: dict[str, Any], architecture: str) -> None:
    counts = tuple(count(adapted(models[architecture], targets)[0], "lora_unet_") for targets in ("standard", "all"))
    assert counts == UNET_COUNTS[architecture]


@families
def test_text_encoder_module_counts_match_kohya(models: dict[str, Any], architecture: str) -> None:
    adapter, _ = adapted(models[architecture], "standard")
    prefixes = ("lora_te_",) if architecture != "sdxl" else ("lora_te1_", "lora_te2_")
    assert tuple(count(adapter, prefix) for prefix in prefixes) == TEXT_COUNTS[architecture]


@families
def test_attention_targets_are_the_eight_projections_of_each_block(models: dict[str, Any], architecture: str) -> None:
    adapter, _ = adapted(models[architecture], "attention")
    blocks = 70 if architecture == "sdxl" else 16
    assert count(adapter, "lora_unet_") == 8 * blocks
    assert count(adapter, "lora_te") == sum(TEXT_COUNTS[architecture]) * 4 // 6


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        (
            "sd1",
            [
                "lora_unet_down_blocks_0_attentions_0_proj_in",
                "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
                "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj",
                "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_2",
                "lora_unet_down_blocks_0_resnets_0_time_emb_proj",
                "lora_unet_down_blocks_0_downsamplers_0_conv",
                "lora_unet_up_blocks_0_upsamplers_0_conv",
                "lora_unet_up_blocks_0_resnets_0_conv_shortcut",
                "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
                "lora_te_text_model_encoder_layers_11_mlp_fc2",
            ],
        ),
        (
            "sdxl",
            [
                "lora_unet_input_blocks_4_1_proj_in",
                "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_k",
                "lora_unet_middle_block_1_transformer_blocks_0_ff_net_0_proj",
                "lora_unet_output_blocks_0_1_transformer_blocks_0_attn1_to_q",
                "lora_unet_output_blocks_5_1_proj_out",
                "lora_unet_input_blocks_1_0_in_layers_2",
                "lora_unet_input_blocks_1_0_emb_layers_1",
                "lora_unet_input_blocks_1_0_out_layers_3",
                "lora_unet_input_blocks_4_0_skip_connection",
                "lora_unet_input_blocks_3_0_op",
                "lora_unet_output_blocks_2_2_conv",
                "lora_te1_text_model_encoder_layers_0_self_attn_out_proj",
                "lora_te2_text_model_encoder_layers_31_mlp_fc1",
            ],
        ),
    ],
)
def test_known_names_are_written(models: dict[str, Any], architecture: str, names: list[str]) -> None:
    adapter, _ = adapted(models[architecture], "all")
    assert [name for name in names if name not in adapter.layers] == []


@families
def test_webuis_know_every_name_of_a_native_fine_tuning(models: dict[str, Any], architecture: str) -> None:
    """A1111 silently drops unknown names, such as `conv_norm_out`, which it only knows as `out.0`."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm)
    names = [name for name, module in models[architecture].unet.named_modules() if isinstance(module, kinds)]
    original = {name: f"lora_unet_{ldm}".replace(".", "_") for name, ldm in ldm_layer_names(names).items()}
    keys = unet_keys(names, architecture=architecture)
    assert "conv_norm_out" in keys
    assert [key for name, key in keys.items() if key != original[name] and not A1111_PLACES.match(key)] == []


def test_the_old_name_of_the_last_norm_is_read() -> None:
    known = aliases(kind_of("sd1").lora_aliases(["conv_norm_out", "conv_out"]), [[]])
    assert known["lora_unet_conv_norm_out"] == known["lora_unet_out_0"] == "lora_unet_out_0"


@pytest.mark.parametrize("targets", ["attention", "standard", "all"])
@families
def test_diffusers_reads_every_name_back_as_our_module(models: dict[str, Any], architecture: str, targets: str) -> None:
    """An independent reader: diffusers' own converter of kohya files."""
    model = models[architecture]
    adapter, places = adapted(model, targets)
    loader: Any = StableDiffusionXLLoraLoaderMixin if architecture == "sdxl" else StableDiffusionLoraLoaderMixin
    state = {
        f"{key}.{ending}": torch.ones(shape)
        for key, layer in adapter.layers.items()
        for ending, shape in layer.state_shapes().items()
    }
    converted, _ = loader.lora_state_dict(state, unet_config=model.unet.config)
    found = {_module_of(key) for key in converted if key.startswith("unet.")}
    assert found == {f"unet.{name}" for key, name in places.items() if key.startswith("lora_unet_")}
    text = {_module_of(key) for key in converted if key.startswith("text_encoder")}
    assert len(text) == count(adapter, "lora_te")


def _module_of(key: str) -> str:
    """The module a converted key belongs to; diffusers writes attention as `processor.to_out_lora` and the like."""
    name = re.sub(r"(_lora|\.lora(_linear_layer)?)[._](up|down|A|B)\.weight$", "", key)
    return re.sub(r"\.to_out$", ".to_out.0", name.replace(".processor.", "."))


def test_ldm_names_of_all_sdxl_layers_are_distinct_and_complete(models: dict[str, Any]) -> None:
    unet = models["sdxl"].unet
    layers = [name for name, module in unet.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))]
    names = ldm_layer_names(layers)
    assert len(set(names.values())) == len(layers)
    assert names["conv_in"] == "input_blocks.0.0" and names["conv_out"] == "out.2"
    assert names["time_embedding.linear_2"] == "time_embed.2"
    assert names["add_embedding.linear_1"] == "label_emb.0.0"
    assert names["mid_block.resnets.1.conv2"] == "middle_block.2.out_layers.3"


def test_text_names_are_the_same_for_old_and_new_transformers() -> None:
    old = text_key("text_model.encoder.layers.3.mlp.fc1", "lora_te")
    new = text_key("encoder.layers.3.mlp.fc1", "lora_te")
    assert old == new == "lora_te_text_model_encoder_layers_3_mlp_fc1"


@families
def test_families_support_every_stable_diffusion_layer(models: dict[str, Any], architecture: str) -> None:
    """Grouped convolutions, which no webui's formula covers, do not occur; packed heads are plain layers here."""
    unet = models[architecture].unet
    layers = [layer for layer in unet.modules() if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))]
    assert len(layers) > 250
    assert all(FAMILIES[name].fits(layer) for name in ("lora", "loha", "lokr", "oft") for layer in layers)
    assert all(layer.groups == 1 for layer in layers if isinstance(layer, torch.nn.Conv2d))
