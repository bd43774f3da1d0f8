"""Which webui runs us, told by what it can do, never by its name alone."""

from __future__ import annotations

import importlib
import importlib.util

from lib_lora_train.core.errors import HostError
from lib_lora_train.hosts.webui.a1111 import A1111
from lib_lora_train.hosts.webui.forge import Forge
from lib_lora_train.hosts.webui.host import WebuiHost
from lib_lora_train.hosts.webui.reforge import ForgeClassic, LdmPatched


def detect_host() -> WebuiHost:
    """The webui around us as a host; HostError if it is one that this extension has not been run in."""
    if _has("backend.diffusion_engine.base"):
        if _forge_version() == "neo":
            raise HostError(
                "Forge Neo is not supported yet: its models are kept differently. Everything else in the webui works; "
                "to train, run `python launch.py` in this extension's folder."
            )
        return WebuiHost(Forge())
    if _has("ldm_patched.modules.model_management"):
        return WebuiHost(ForgeClassic() if _forge_version() == "classic" else LdmPatched())
    return WebuiHost(A1111())


def _forge_version() -> str:
    if not _has("modules_forge.forge_version"):
        return ""
    return str(getattr(importlib.import_module("modules_forge.forge_version"), "version", ""))


def _has(name: str) -> bool:
    """Whether a module can be imported; a missing parent package is a no."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
