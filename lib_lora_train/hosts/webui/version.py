"""The version of the webui we run in."""

from __future__ import annotations

import sys


def webui_version() -> str:
    """Its git tag, as at the foot of its page; "" without a webui or if it cannot be read."""
    launch_utils = sys.modules.get("modules.launch_utils")
    try:
        return str(launch_utils.git_tag()) if launch_utils else ""
    except Exception:  # the webui's own code; a report must not depend on it
        return ""
