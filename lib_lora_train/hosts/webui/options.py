"""The webui's folders, settings and access rules, and the button that fills its txt2img tab."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from lib_lora_train.core.errors import HostError
from lib_lora_train.hosts.access import ApiAccess
from lib_lora_train.sampling.infotext import pasted_names

_SUBFOLDER = "lora_train_subfolder"


def outputs_folder() -> Path:
    """The folder for runs, beside the webui's own images."""
    from modules import paths_internal

    return Path(paths_internal.data_path) / "outputs" / "lora-train"


def add_settings() -> None:
    """Add our section to the webui's settings."""
    from modules import shared

    info = shared.OptionInfo("", "Sub-folder of the LoRA folder for new files", section=("lora_train", "LoRA Train"))
    shared.opts.add_option(_SUBFOLDER, info)


def lora_folder(shared: Any) -> Path:
    """Where new LoRAs go, from the webui's `modules.shared`; HostError for a sub-folder outside it."""
    folder, inner = Path(shared.cmd_opts.lora_dir), Path(getattr(shared.opts, _SUBFOLDER, "") or "")
    if inner.is_absolute() or ".." in inner.parts:
        raise HostError(f"Settings, LoRA Train: {inner} is outside the webui's LoRA folder. Enter a plain folder name.")
    return folder / inner


def lora_folders(shared: Any) -> tuple[Path, ...]:
    """Every folder in which the webui looks for LoRAs, from its `modules.shared`."""
    options = shared.cmd_opts
    return tuple(map(Path, dict.fromkeys((options.lora_dir, *(getattr(options, "lora_dirs", None) or ())))))


def webui_access() -> ApiAccess:
    """The access rules of the webui's own API: off without `--api`, protected by `--api-auth` if given.

    With `--nowebui` there is only the API and no page.
    """
    from modules import shared

    options = shared.cmd_opts
    pairs = (pair.split(":", 1) for pair in (options.api_auth or "").split(",") if ":" in pair)
    origins = (getattr(options, "cors_allow_origins", None) or "").split(",")
    return ApiAccess(
        bool(options.api or options.nowebui),
        has_page=not options.nowebui,
        credentials=dict(pairs),
        allowed_origins=tuple(origin.strip().rstrip("/").lower() for origin in origins if origin.strip()),
        allowed_origin_pattern=getattr(options, "cors_allow_origins_regex", None) or "",
    )


def bind_paste_button(button: Any, source: Any) -> None:
    """Make a click on `button` fill txt2img with the infotext in the text box `source` and show that tab.

    Call this while the tab is built: the webui connects all such buttons afterwards.
    """
    from modules import infotext_utils

    binding = infotext_utils.ParamBinding(paste_button=button, tabname="txt2img", source_text_component=source)
    infotext_utils.register_paste_params_button(binding)


def keep_unnamed_options(infotext: str, values: MutableMapping[str, Any]) -> None:
    """Remove from `values`, as the webui read them from an infotext of ours, the options that it does not name.

    Webuis take a setting that is missing from an infotext as its default, and would override the user's option with
    it: the source of random numbers, the type of VAE, 8-bit storage and others.

    After an image with overridden options, webuis restore only those that were ever set. Options that the text does
    name are therefore set to the value that they have.
    """
    named = pasted_names(infotext)
    if named is None:
        return
    from modules import shared

    for option, info in shared.opts.data_labels.items():
        label = getattr(info, "infotext", None)
        if label in named:
            shared.opts.data.setdefault(option, info.default)
        elif label:
            values.pop(label, None)
