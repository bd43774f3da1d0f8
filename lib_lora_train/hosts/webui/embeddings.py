"""The webui's embeddings of textual inversion: their folder, and its lists of them.

A1111 and reForge have one list, which every generation renews if the folder has changed. Forge and Forge Neo have one
for each text encoder of the loaded model, made when it is loaded. All of this is called under the queue lock.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lib_lora_train.core.errors import HostError

_ENGINES = ("text_processing_engine", "text_processing_engine_l", "text_processing_engine_g")


def embedding_folder(shared: Any) -> Path:
    """`--embeddings-dir`, from the webui's `modules.shared`."""
    return Path(shared.cmd_opts.embeddings_dir)


def refresh_embeddings(model: Any) -> None:
    """Have Forge read the folder again; `model` is the one that is loaded, None if there is none."""
    for one in _lists_of(model):
        one.load_textual_inversion_embeddings()


def require_embedding(model: Any, name: str) -> None:
    """HostError unless prompts with this name are read with an embedding; the webui's lists are renewed before.

    The webui would otherwise draw the word in its usual meaning.
    """
    lists = _lists_of(model) or _hijacked_lists()
    for one in lists:
        one.load_textual_inversion_embeddings()
    if not lists or any(name not in one.word_embeddings for one in lists):
        if any(name in one.skipped_embeddings for one in lists):
            raise HostError(f"The embedding {name} is for another kind of model than the webui has loaded.")
        raise HostError(f"The webui cannot find {name}: the file is not in its folder of embeddings.")


def _lists_of(model: Any) -> list[Any]:
    """The lists of Forge's text encoders; [] in other webuis."""
    found = (getattr(getattr(model, name, None), "embeddings", None) for name in _ENGINES)
    return [one for one in found if one is not None]


def _hijacked_lists() -> list[Any]:
    """A1111's list; [] in other webuis."""
    hijack = getattr(sys.modules.get("modules.sd_hijack"), "model_hijack", None)
    found = getattr(hijack, "embedding_db", None)
    return [found] if found is not None else []
