#!/bin/bash
# PEFT 0.21.2: OFT on a convolution with a 3×3 kernel changes the output before any training, and merging undoes it.
#
# A new OFT adapter is the identity (its weights are 0), so the output must not change. On kernels larger than 1×1 the
# forward pass cuts the input into overlapping patches, rotates each, and adds them up where they overlap, so that a value
# of the input counts up to 9 times. `merge_and_unload` rotates the kernel instead, and is right. Training therefore sees
# another model than the one that is merged. Expected: both differ from the base model by 0.
#
# Installs the pinned packages in a temporary folder and needs nothing else. Exit status 0: the behaviour is as described.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "peft==0.21.2" "torch==2.13.0" "transformers==5.23.0"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from peft import OFTConfig, __version__, get_peft_model
from torch import nn


class Model(nn.Module):
    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 8, kernel, padding=kernel // 2)

    def forward(self, x):
        return self.layer(x)


def differences(kernel: int) -> tuple[float, float]:
    """How much the output of a new adapter, and of its merged form, differ from the model's."""
    torch.manual_seed(0)
    model, x = Model(kernel).eval(), torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        expected = model(x)
        adapted = get_peft_model(model, OFTConfig(oft_block_size=4, target_modules=["layer"])).eval()
        found = adapted(x)
        merged = adapted.merge_and_unload()(x)
    return tuple(float((output - expected).norm() / expected.norm()) for output in (found, merged))


print(f"peft {__version__}, torch {torch.__version__}")
for kernel in (1, 3):
    found, merged = differences(kernel)
    print(f"{kernel}x{kernel}: the new adapter changes the output by {found:.2f}, merged by {merged:.2f}")
    assert merged < 1e-5, "merging is the identity"
    assert (found > 1) == (kernel == 3), "only larger kernels are changed"
PYTHON
