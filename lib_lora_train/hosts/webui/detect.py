"""Detect which webui we run in, by its modules rather than by its name."""

from __future__ import annotations

import importlib
import importlib.util

from lib_lora_train.hosts.webui.a1111 import A1111
from lib_lora_train.hosts.webui.forge import Forge
from lib_lora_train.hosts.webui.host import WebuiHost
from lib_lora_train.hosts.webui.neo import ForgeNeo
from lib_lora_train.hosts.webui.reforge import ForgeClassic, LdmPatched


def detect_host() -> WebuiHost:
    """The webui we run in, as a host."""
    if _has("backend.diffusion_engine.base"):
        return WebuiHost(ForgeNeo() if _forge_version() == "neo" else Forge())
    if _has("ldm_patched.modules.model_management"):
        return WebuiHost(ForgeClassic() if _forge_version() == "classic" else LdmPatched())
    return WebuiHost(A1111())


def _forge_version() -> str:
    if not _has("modules_forge.forge_version"):
        return ""
    return str(getattr(importlib.import_module("modules_forge.forge_version"), "version", ""))


def _has(name: str) -> bool:
    """Whether a module can be imported; False if its parent package is missing."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
