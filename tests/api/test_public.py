"""The public API does what docs/api.md says, and importing it costs nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lib_lora_train
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import ConfigError, DataError, LoraTrainError
from tests.paths import ROOT

_PAGE = ROOT / "docs" / "api.md"


def snippets() -> list[str]:
    """The page's Python examples, in order."""
    return re.findall(r"^```python\n(.*?)^```", _PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder in which the page's examples ran, and the names that they left."""
    place, names = tmp_path_factory.mktemp("api"), dict[str, Any]()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for snippet in snippets():
            code = snippet.replace('"assets/demo/train"', repr(str(ROOT / "assets" / "demo" / "train")))
            exec(compile(code, str(_PAGE), "exec"), names)
    return place, names


def test_the_pages_first_example_plans_and_trains(finished: tuple[Path, dict[str, Any]]) -> None:
    place, names = finished
    assert names["planned"].plan.total_steps == len(names["losses"]) == 4
    files = names["run"].lora_files
    assert [file.parent for file in files] == [place / "api-demo" / "models" / "Lora"] * len(files)
    assert len(files) >= 2 and all(file.is_file() for file in files)
    assert (names["run"].folder / "events.jsonl").is_file()


def test_the_pages_second_example_merges_to_the_weighted_sum(finished: tuple[Path, dict[str, Any]]) -> None:
    place, names = finished
    first, second = (lib_lora_train.load(file).state for file in names["run"].lora_files[:2])
    merged = lib_lora_train.load(place / "api-demo" / "merged.safetensors").state
    layer = next(key.removesuffix(".alpha") for key in merged if key.endswith(".alpha"))
    expected = (_update(first, layer) + _update(second, layer)) / 2
    # half precision keeps 11 bits of each factor
    torch.testing.assert_close(_update(merged, layer), expected, rtol=0, atol=2e-3 * float(expected.abs().max()))
    assert names["merged"].left_out == () and 0 < names["merged"].error < 1e-2


def _update(state: Any, layer: str) -> torch.Tensor:
    down, up = (state[f"{layer}.lora_{part}.weight"].double().flatten(1) for part in ("down", "up"))
    update: torch.Tensor = state[f"{layer}.alpha"].double() / len(down) * up @ down
    return update


def test_a_merged_file_is_never_overwritten(finished: tuple[Path, dict[str, Any]]) -> None:
    place, names = finished
    with pytest.raises(LoraTrainError, match=r"merged\.safetensors"):
        lib_lora_train.merge(names["run"].lora_files[:2], place / "api-demo" / "merged.safetensors")


def test_settings_may_be_a_file_a_mapping_or_a_config(tmp_path: Path, demo_dir: Path) -> None:
    file = tmp_path / "zorp.toml"
    file.write_text(f"epochs = 3\n[[concepts]]\nfolder = '{demo_dir / 'train'}'\n", encoding="utf-8")
    planned = lib_lora_train.plan(file, resolution=128, min_bucket=64)
    assert (planned.plan.epochs, planned.config.resolution) == (3, 128)
    assert lib_lora_train.plan(planned.config, epochs=2).plan.epochs == 2
    assert lib_lora_train.plan({"concepts": [{"folder": str(demo_dir / "train")}]}, epochs=1).plan.epochs == 1


def test_all_invalid_settings_are_reported_together() -> None:
    with pytest.raises(ConfigError) as raised:
        lib_lora_train.plan({"rank": 0, "epoch": 3})
    assert {problem.where for problem in raised.value.problems} == {"rank", "epoch", "concepts"}


def test_a_folder_without_images_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        lib_lora_train.train({"concepts": [{"folder": str(tmp_path)}]}, out=tmp_path)
    assert list(tmp_path.iterdir()) == [], "nothing is written before the plan is made"


def test_importing_the_package_loads_nothing_and_planning_no_pytorch(demo_dir: Path) -> None:
    code = (
        "import sys, lib_lora_train\n"
        "assert not [name for name in sys.modules if name.startswith('lib_lora_train.')]\n"
        "assert 'plan' in dir(lib_lora_train)\n"
        f"lib_lora_train.plan({{'concepts': [{{'folder': {str(demo_dir / 'train')!r}}}]}})\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        _ = lib_lora_train.fly


def test_a_config_needs_no_file() -> None:
    with pytest.raises(ConfigError, match="folder"):
        lib_lora_train.plan(TrainConfig())
