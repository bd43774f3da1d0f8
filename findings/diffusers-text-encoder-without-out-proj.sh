#!/bin/bash
# diffusers 0.42.1: of a kohya LoRA whose text encoder has no out_proj layer, the text encoder's attention is not loaded.
#
# The same file with out_proj layers is loaded whole. diffusers infers the spelling of the converted keys from the presence
# of `to_out_lora`; without one, the keys `…self_attn.to_q_lora.down.weight` are passed on under a name that no layer has.
# There is no error; transformers prints a table of "UNEXPECTED" keys. Expected: all layers of the file are loaded.
#
# Installs the pinned packages in a temporary folder and needs nothing else. Exit status 0: the behaviour is as described.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "diffusers==0.42.1" "peft==0.21.2" "torch==2.13.0" "transformers==5.23.0" accelerate
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import diffusers
import peft
import torch
import transformers
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel


def loaded(layers: list[str]) -> list[str]:
    """The kinds of layers of the text encoder that have a LoRA after a kohya file with `layers` was loaded."""
    config = CLIPTextConfig(
        vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    encoder, state = CLIPTextModel(config), {}
    for layer in layers:
        width, out = (32, 16) if layer == "mlp_fc2" else (16, 16)
        key = f"lora_te_text_model_encoder_layers_0_{layer}"
        state |= {f"{key}.lora_down.weight": torch.ones(2, width), f"{key}.lora_up.weight": torch.ones(out, 2)}
        state[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(state, "kohya.safetensors")
    state, alphas = StableDiffusionPipeline.lora_state_dict("kohya.safetensors")[:2]
    StableDiffusionPipeline.load_lora_into_text_encoder(
        state, network_alphas=alphas, text_encoder=encoder, prefix="text_encoder"
    )
    return sorted(
        name.rpartition(".")[2] for name, module in encoder.named_modules() if len(getattr(module, "lora_A", {})) > 0
    )


print(f"diffusers {diffusers.__version__}, peft {peft.__version__}, transformers {transformers.__version__}")
for layers in (["self_attn_q_proj", "mlp_fc2"], ["self_attn_q_proj", "self_attn_out_proj", "mlp_fc2"]):
    found = loaded(layers)
    print(f"file with {', '.join(layers)}: loaded are {', '.join(found) or 'none'}")
    is_whole = len(found) == len(layers)
    assert is_whole == ("self_attn_out_proj" in layers)
PYTHON
