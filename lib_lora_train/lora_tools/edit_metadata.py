"""The metadata of a LoRA file in a new file: fields of the ModelSpec standard set, private parts taken out.

ModelSpec 1.0.1: https://github.com/Stability-AI/ModelSpec. The tensors are copied as they are.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError

from lib_lora_train.adapters.files.rename import NAME_KEY
from lib_lora_train.core.errors import AdapterError, OutputError
from lib_lora_train.core.safetensors_header import Header, read_header
from lib_lora_train.core.wording import count
from lib_lora_train.core.writable import failed_write_advice
from lib_lora_train.lora_tools.changed_copy import write_changed_copy
from lib_lora_train.lora_tools.metadata_fields import FIELDS
from lib_lora_train.lora_tools.new_file import refuse_existing

THUMBNAIL = "modelspec.thumbnail"
_STANDARD = "modelspec.sai_model_spec"
_LEGACY_HASH = "sshs_legacy_hash"  # covers the metadata, so that it is wrong after a change
_THUMBNAIL_PX = 256
_LONGEST_SHOWN = 300
_FOLDERS = re.compile(r"(?<![\w:/\\.])(?:[A-Za-z]:|~)?[\\/]+(?:[^\s\\/:\"'<>|,;]+[\\/]+)+")
_WHOLE_PATH = re.compile(r"^(?:[A-Za-z]:|~)?[\\/]")


@dataclass(frozen=True)
class MetadataEdit:
    """What is changed.

    Attributes:
        values: key or name in `FIELDS` → new text; "" removes the entry
        strip: whether paths are reduced to their last part, which also takes out the user names in them
        preview: an image that becomes the file's thumbnail; None: as it is
    """

    values: Mapping[str, str] = field(default_factory=dict)
    strip: bool = False
    preview: Path | None = None


def edit_metadata(metadata: Mapping[str, str], edit: MetadataEdit, *, name: str) -> dict[str, str]:
    """The metadata of a new file called `name`; AdapterError for a preview that is not an image."""
    new = {key: without_folders(value) for key, value in metadata.items()} if edit.strip else dict(metadata)
    if NAME_KEY in new:
        new[NAME_KEY] = name
    new |= {FIELDS.get(key, key): value for key, value in edit.values.items()}
    if edit.preview is not None:
        new[THUMBNAIL] = _thumbnail(edit.preview)
    new = {key: value for key, value in new.items() if value}
    if any(key.startswith("modelspec.") for key in new):
        new.setdefault(_STANDARD, "1.0.1")
        new.setdefault(FIELDS["title"], name)
    if new != dict(metadata):
        new.pop(_LEGACY_HASH, None)
    return new


def write_edited(source: Path, path: Path, edit: MetadataEdit) -> dict[str, str]:
    """Write the LoRA to `path` with its metadata edited, which are returned.

    LoraTrainError if the new file exists, AdapterError for a damaged file and for a preview that is not an image,
    OutputError if writing fails.
    """
    refuse_existing(path)
    header = read_header(source)
    metadata = edit_metadata(header.metadata, edit, name=path.stem)
    try:
        write_changed_copy(source, header, path, metadata=metadata, changed=(), change=lambda _name, tensor: tensor)
    except SafetensorError as error:
        raise AdapterError(f"{source.name} is damaged: {error}. Download or train it again.") from error
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{path} could not be written: {reason}. {failed_write_advice(error)}") from error
    return metadata


def describe_metadata(header: Header) -> list[str]:
    """`key: value` of every entry, in order; long values are cut, and an image is not shown."""
    return [f"{key}: {_shown(key, value)}" for key, value in sorted(header.metadata.items())]


def _shown(key: str, value: str) -> str:
    if key == THUMBNAIL:
        return f"an image of {len(value) / 1000:.0f} kB"
    return value if len(value) <= _LONGEST_SHOWN else f"{value[:_LONGEST_SHOWN]}… ({count(len(value), 'character')})"


def without_folders(text: str) -> str:
    """The text with every absolute path reduced to its last part, also inside JSON; web addresses stay."""
    try:
        value = json.loads(text)
    except ValueError:
        return _without_folders(text)
    if not isinstance(value, (dict, list)):
        return text
    stripped = _strip_value(value)
    return text if stripped == value else json.dumps(stripped, ensure_ascii=False)


def _strip_value(value: Any) -> Any:
    if isinstance(value, str):
        return _without_folders(value)
    if isinstance(value, dict):
        return {_without_folders(key): _strip_value(inner) for key, inner in value.items()}
    return [_strip_value(inner) for inner in value] if isinstance(value, list) else value


def _without_folders(text: str) -> str:
    if _WHOLE_PATH.match(text) and "\n" not in text:
        return re.split(r"[\\/]", text.rstrip("\\/"))[-1]
    return _FOLDERS.sub("", text)


def _thumbnail(path: Path) -> str:
    """The image as a data URL of a JPEG of at most 256 px."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise AdapterError(f"{path} cannot be read as an image. Choose a PNG, JPEG or WebP for the preview.") from error
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
