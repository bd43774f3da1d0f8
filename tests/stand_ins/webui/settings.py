"""`modules.shared`: a webui's settings and their traps."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from tests.stand_ins.webui.modules import module_of


class Options:
    """The webui's settings: `data` has those that were ever saved or set, and an option has its default until then."""

    def __init__(self) -> None:
        self.__dict__.update(data={}, data_labels={"CLIP_stop_at_last_layers": SimpleNamespace(default=1)})

    def __getattr__(self, key: str) -> Any:
        if key in self.data:
            return self.data[key]
        if key in self.data_labels:
            return self.data_labels[key].default
        raise AttributeError(key)

    def __setattr__(self, key: str, value: Any) -> None:
        self.data[key] = value

    def add_option(self, key: str, info: Any) -> None:
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)

    def save(self, filename: str) -> None:
        Path(filename).write_text(json.dumps(self.data))


def listed_loras(options: Any) -> dict[str, SimpleNamespace]:
    """The LoRA files by name, as the built-in extension lists them: the last one of a name counts."""
    folders = [Path(folder) for folder in (options.lora_dir, *getattr(options, "lora_dirs", ()))]
    files = [path for folder in folders for path in sorted(folder.rglob("*.safetensors"))]
    return {path.stem: SimpleNamespace(filename=str(path)) for path in files}


def shared_module(lora_dir: Path, **values: Any) -> ModuleType:
    """`modules.shared`."""

    def option_info(default: Any, label: str, section: tuple[str, str]) -> SimpleNamespace:
        return SimpleNamespace(default=default, label=label, section=section)

    folders = {"lora_dir": str(lora_dir), "embeddings_dir": str(lora_dir.parent / "embeddings")}
    options = SimpleNamespace(**folders, no_prompt_history=False)
    values.setdefault("config_filename", str(lora_dir.parent / "config.json"))
    values.setdefault("total_tqdm", SimpleNamespace(clear=lambda: None))
    return module_of("modules.shared", cmd_opts=options, opts=Options(), OptionInfo=option_info, **values)
