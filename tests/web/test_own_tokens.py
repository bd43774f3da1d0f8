"""Captions for a model without CLIP are counted by its own tokenizer, or it is said that they are not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image
from safetensors.torch import save_file

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import DataError
from lib_lora_train.web.captions import CaptionSession
from lib_lora_train.web.image_tokens import ImageTokens
from lib_lora_train.web.own_tokens import find_own_tokens
from lib_lora_train.web.token_analysis import TokenAnalysis
from tests.stand_ins.tiny_anima import adapter_tensors, transformer_tensors
from tests.stand_ins.tiny_models import write_tiny_checkpoint
from tests.stand_ins.webui.anima import AnimaWorld
from tests.stand_ins.webui.worlds import host_in


def fake_host(checkpoint: Path | None, *, is_loaded: bool) -> Any:
    """A host whose own tokenizer has words as tokens."""
    return SimpleNamespace(
        run_target=lambda _: SimpleNamespace(checkpoint=checkpoint, is_loaded=is_loaded),
        prompt_tokens=lambda texts: [[f" {word}" for word in text.split()] for text in texts],
    )


@pytest.fixture
def anima(tmp_path: Path) -> Path:
    path = tmp_path / "anima.safetensors"
    save_file({**transformer_tensors(), **adapter_tensors()}, path)
    return path


def session(tmp_path: Path, host: Any) -> tuple[CaptionSession, dict[str, Any]]:
    """The captions of a folder with one of 3 and one of 600 words."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, text in (("a", "a red hat"), ("b", "word " * 600)):
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")

    def no_clip() -> Any:
        raise AssertionError("CLIP's tokenizer is not for this model")

    words = TokenAnalysis(no_clip, lambda: find_own_tokens(host, TrainConfig()))
    return CaptionSession(ImageTokens(), words, TrainConfig), {"folder": str(folder)}


def test_the_loaded_models_own_tokenizer_and_limit_are_used(tmp_path: Path, anima: Path) -> None:
    captions, folder = session(tmp_path, fake_host(anima, is_loaded=True))
    shown = captions.show(folder)
    assert [image["tokens"] for image in shown["images"]] == [3, 600]
    assert (list(shown["limits"]), shown["note"]) == ([511], "")
    found = captions.words({**folder, "words": "red hat"})
    assert [(one["from"], one["to"], one["captions"]) for one in found["lengths"]] == [(0, 511, 1), (512, None, 1)]
    assert found["triggers"] == [{"word": "red hat", "tokens": [" red", " hat"]}]
    assert found["rare"] == [] and "CLIP's vocabulary only" in found["note"]
    assert captions.show({**folder, "filter": {"fewest": "500"}})["found"] == 1


def test_without_its_tokenizer_nothing_is_counted_and_the_page_says_so(tmp_path: Path, anima: Path) -> None:
    captions, folder = session(tmp_path, fake_host(anima, is_loaded=False))
    shown = captions.show(folder)
    assert [image["tokens"] for image in shown["images"]] == [-1, -1]
    assert "Tokens for Anima" in shown["note"] and "once the webui has the model loaded" in shown["note"]
    assert captions.words(folder)["note"] == shown["note"]
    first = {**folder, "image": shown["images"][0]["image"], "seen": shown["images"][0]["seen"]}
    assert captions.save({**first, "text": "a blue hat"})["tokens"] == -1
    with pytest.raises(DataError, match="Tokens for Anima"):
        captions.show({**folder, "filter": {"fewest": "500"}})


def test_a_model_with_clip_is_counted_as_before(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "sd.safetensors", "sd1", shallow=True)
    assert find_own_tokens(cast(Any, fake_host(path, is_loaded=True)), TrainConfig()) is None
    assert find_own_tokens(cast(Any, fake_host(None, is_loaded=True)), TrainConfig()) is None


def test_forge_neo_splits_texts_as_its_text_engine_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = AnimaWorld(monkeypatch, tmp_path)
    host = host_in(world)
    assert host.prompt_tokens(["a"]) is None, "nothing is loaded yet"
    world.generate()
    assert host.prompt_tokens(["a red hat", ""]) == [[" a", " red", " hat"], []]
    assert not world.engine.calls, "nothing is encoded"
