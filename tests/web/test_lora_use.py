"""A LoRA goes into the prompt only if it fits the loaded model, with the settings of its samples if wanted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_lora_train.adapters.files.lora_file import write_adapter
from lib_lora_train.config.train_config import Concept
from lib_lora_train.core.errors import HostError
from lib_lora_train.core.events import LoraWritten
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from lib_lora_train.runs.records.event_log import log_line, log_record
from lib_lora_train.runs.records.folder import RunFolder, new_run_folder
from lib_lora_train.web import lora_use
from lib_lora_train.web.lora_use import LoraUse, find_misfit
from tests.stand_ins.tiny_models import STABLE_DIFFUSION
from tests.stand_ins.ui import small_config

_WIDTHS = {"sd1": 768, "sd2": 1024, "sdxl": 2048}


def write_lora(path: Path, width: int, metadata: dict[str, str] | None = None, layer: str = "") -> Path:
    """A LoRA on one layer with this input width, by default a cross-attention of the UNet."""
    key = layer or "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    state = {f"{key}.lora_down.weight": torch.ones(1, width), f"{key}.lora_up.weight": torch.ones(8, 1)}
    write_adapter(path, state, metadata=metadata or {}, precision="fp32")
    return path


def run_with(tmp_path: Path, lora: Path, **values: Any) -> RunFolder:
    folder = new_run_folder(tmp_path / "home", "zok")
    write_toml_config(folder.config, small_config(tmp_path / "set").replace(**values))
    folder.log.write_text(log_line(log_record(LoraWritten(str(lora), 1, 5))), encoding="utf-8")
    return folder


def uses(tmp_path: Path, read: Path | None = None) -> LoraUse:
    """Of a host without a model, which reads the file `read` whatever the name."""
    return LoraUse(tmp_path / "home", lambda: None, lambda _: read)


@pytest.mark.parametrize("loaded", STABLE_DIFFUSION)
@pytest.mark.parametrize("made_for", STABLE_DIFFUSION)
@pytest.mark.parametrize("is_by_metadata", [False, True])
def test_a_lora_of_another_kind_of_model_is_named_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: str, made_for: str, is_by_metadata: bool
) -> None:
    version = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}[made_for]
    file = tmp_path / "zok.safetensors"
    if is_by_metadata:
        write_lora(file, 8, {"ss_base_model_version": version}, "lora_unet_mid_block_attentions_0_proj_in")
    else:
        write_lora(file, _WIDTHS[made_for], {"ss_base_model_version": "sd_v1"})  # its layers say more than its metadata
    info = SimpleNamespace(spec=SimpleNamespace(architecture=loaded))
    monkeypatch.setattr("lib_lora_train.models.model_files.read_checkpoint_info", lambda _: info)
    misfit = find_misfit(file, Path("model.safetensors"))
    assert bool(misfit) == (loaded != made_for)
    if misfit:
        assert misfit.startswith("zok is for SD") and "model loaded, which is SD" in misfit


def test_what_is_unknown_is_not_refused(tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "a.safetensors", 8, layer="lora_unet_mid_block_attentions_0_proj_in")
    assert find_misfit(lora, EMBEDDED_CHECKPOINT) == ""
    assert find_misfit(write_lora(tmp_path / "b.safetensors", 2048), tmp_path / "gone.safetensors") == ""


def test_the_settings_are_those_of_the_runs_first_sample(tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "zok.safetensors", 768)
    prompts = ("zok --w 128 --h 192 --s 12 --l 3.5 --d 9",)
    folder = run_with(tmp_path, lora, sample_prompts=prompts, clip_skip=2, webui_sampler="DPM++ 2M Karras")
    answer = uses(tmp_path).use({"run": folder.root.name, "path": str(lora)})
    assert answer == {
        "misfit": "",
        "word": "",
        "settings": "Steps: 12, Sampler: DPM++ 2M Karras, CFG scale: 3.5, Size: 128x192, Clip skip: 2, "
        "Source: LoRA Train",
    }


def test_a_missing_file_and_a_file_of_another_run_are_not_used(tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "zok.safetensors", 768)
    use = uses(tmp_path).use
    run = run_with(tmp_path, lora).root.name
    for values in ({"run": run, "path": str(tmp_path / "other.safetensors")}, {"run": "no", "path": str(lora)}):
        with pytest.raises(HostError, match="is missing"):
            use(values)
    lora.unlink()
    with pytest.raises(HostError, match=r"zok\.safetensors is missing"):
        use({"run": run, "path": str(lora)})


def test_a_run_without_readable_settings_can_still_be_used(tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "zok.safetensors", 768)
    folder = run_with(tmp_path, lora)
    folder.config.write_text("= broken", encoding="utf-8")
    answer = uses(tmp_path).use({"run": folder.root.name, "path": str(lora)})
    assert answer == {"misfit": "", "settings": "", "word": ""}
    assert lora_use._settings(RunFolder(tmp_path)) == ""


def test_a_file_whose_name_stands_in_another_folder_too_is_not_taken_for_that(tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "zok.safetensors", 768)
    values = {"run": run_with(tmp_path, lora).root.name, "path": str(lora)}
    misfit = uses(tmp_path, tmp_path / "more" / "zok.safetensors").use(values)["misfit"]
    assert "two LoRA files named zok" in misfit and str(tmp_path / "more") in misfit
    assert uses(tmp_path, tmp_path / "here" / ".." / "zok.safetensors").use(values)["misfit"] == ""


def test_word_of_an_embedding_is_named_so_that_the_files_name_takes_its_place(tmp_path: Path) -> None:
    file = tmp_path / "zok.safetensors"
    file.touch()
    embedding = run_with(tmp_path, file, method="textual_inversion", concepts=(Concept("set", trigger="zok"),))
    answer = uses(tmp_path).use({"run": embedding.root.name, "path": str(file)})
    assert (answer["word"], answer["misfit"]) == ("zok", "")
    lora = run_with(tmp_path, file)
    assert uses(tmp_path).use({"run": lora.root.name, "path": str(file)})["word"] == ""
