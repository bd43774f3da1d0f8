"""The webuis' lists of embeddings are renewed before an image is drawn with one, and a wrong one is refused."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from lib_lora_train.core.errors import HostError
from lib_lora_train.hosts.webui.embeddings import embedding_folder, refresh_embeddings, require_embedding


class Embeddings:
    """A list as A1111 and Forge have it, over a folder with these names."""

    def __init__(self, *names: str, skipped: tuple[str, ...] = ()) -> None:
        self.folder, self.word_embeddings, self.skipped_embeddings = names, dict[str, int](), dict.fromkeys(skipped)

    def load_textual_inversion_embeddings(self) -> None:
        self.word_embeddings = dict.fromkeys(self.folder, 1)


def forge(*lists: Embeddings) -> Any:
    names = ("text_processing_engine",) if len(lists) == 1 else ("text_processing_engine_l", "text_processing_engine_g")
    return SimpleNamespace(**{name: SimpleNamespace(embeddings=one) for name, one in zip(names, lists, strict=True)})


def use_a1111(monkeypatch: pytest.MonkeyPatch, found: Embeddings) -> None:
    hijack = SimpleNamespace(model_hijack=SimpleNamespace(embedding_db=found))
    monkeypatch.setitem(sys.modules, "modules.sd_hijack", hijack)


def test_new_file_is_found_in_a1111(monkeypatch: pytest.MonkeyPatch) -> None:
    use_a1111(monkeypatch, Embeddings("zorp-000001"))
    require_embedding(SimpleNamespace(), "zorp-000001")
    with pytest.raises(HostError, match="cannot find zorp-000002"):
        require_embedding(SimpleNamespace(), "zorp-000002")


def test_new_file_is_found_by_both_of_forges_text_encoders() -> None:
    both = Embeddings("zorp"), Embeddings("zorp")
    require_embedding(forge(*both), "zorp")
    with pytest.raises(HostError, match="cannot find"):
        require_embedding(forge(Embeddings("zorp"), Embeddings()), "zorp")


def test_embedding_for_another_model_is_named_as_such() -> None:
    with pytest.raises(HostError, match="another kind of model"):
        require_embedding(forge(Embeddings(skipped=("zorp",))), "zorp")


def test_webui_without_a_list_of_embeddings_draws_nothing_else_instead() -> None:
    with pytest.raises(HostError, match="cannot find"):
        require_embedding(None, "zorp")


def test_forges_lists_are_renewed_with_those_of_loras() -> None:
    one = Embeddings("zorp")
    refresh_embeddings(forge(one))
    refresh_embeddings(None)
    assert "zorp" in one.word_embeddings


def test_folder_is_that_of_the_webuis_option() -> None:
    shared = SimpleNamespace(cmd_opts=SimpleNamespace(embeddings_dir="/data/embeddings"))
    assert embedding_folder(shared).as_posix() == "/data/embeddings"
