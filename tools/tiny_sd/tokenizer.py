"""CLIP's byte-pair tokenizer files, derived from OpenAI's merge list.

The list is ``bpe_simple_vocab_16e6.txt.gz`` as shipped in the MIT-licensed
``open_clip_torch`` wheel. The vocabulary is not stored there: it follows from the
merges (256 bytes, 256 bytes with ``</w>``, the merges, two special tokens).
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

MERGES = 49152 - 256 - 2  # CLIP uses this many of the list's lines
START, END = "<|startoftext|>", "<|endoftext|>"


def printable_bytes() -> list[str]:
    """GPT-2's printable stand-in for each byte, in the order CLIP numbers them."""
    direct = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in direct]
    return [chr(byte) for byte in direct] + [chr(256 + index) for index in range(len(others))]


def read_merges(path: Path) -> list[str]:
    """The merges 'left right' that CLIP uses, most frequent first."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return lines.read().split("\n")[1 : MERGES + 1]


def build_vocabulary(merges: list[str]) -> dict[str, int]:
    """Token -> id, 49,408 of them."""
    letters = printable_bytes()
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += ["".join(merge.split()) for merge in merges]
    return {word: index for index, word in enumerate([*words, START, END])}


def write_tokenizer(bpe: Path, folder: Path) -> None:
    """Write the four files that transformers' CLIPTokenizer and A1111 read."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = read_merges(bpe)
    vocabulary = build_vocabulary(merges)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {
        **special,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    compact = json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":"))
    (folder / "vocab.json").write_text(compact, encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
