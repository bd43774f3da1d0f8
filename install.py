"""Install the packages this extension needs into the webui's Python, without changing any installed package.

The webui runs this file at every start, before PyTorch is loaded. It uses only the standard library, takes a fraction
of a second if nothing is missing, and never prevents the webui from starting. Outside a webui it does nothing, because
`python launch.py` has its own environment.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

NAME = "sd-webui-lora-train"
OLDEST = {"diffusers": (0, 31), "peft": (0, 13)}
# Requirements that fit every host. The last two are there as dependencies of transformers and requests.
ANY_VERSION = {
    "tomlkit": "tomlkit>=0.12,<0.15",
    "regex": "regex>=2022.1.18",
    "charset-normalizer": "charset-normalizer>=3.0,<4",
}
MAX_SECONDS = 900.0
# Names and versions allowed in pip's constraints file; webuis may have packages with unusual ones.
_CLEAN_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?")
_CLEAN_VERSION = re.compile(r"(?:\d+!)?\d+(?:\.\d+)*(?:(?:a|b|rc)\d+)?(?:\.post\d+)?(?:\.dev\d+)?(?:\+[A-Za-z0-9.]+)?")


def main() -> None:
    """Install what is missing; prints one line for every other outcome."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # pip's messages may have characters that a Windows console lacks
    if not is_run_by_webui(Path.cwd()):
        print(f"[{NAME}] install.py is only for the webui. Without a webui, run: python launch.py")
        return
    found = {name: installed_version(name) for name in ("torch", "transformers", "accelerate", "safetensors")}
    present = {name: installed_version(name) for name in ("diffusers", "peft", "prodigyopt", *ANY_VERSION)}
    for name, oldest in OLDEST.items():
        version = present[name]
        if version and release(version) < oldest:
            need = ".".join(map(str, oldest))
            print(f"[{NAME}] {name} {version} is older than {need}. It is not changed, but training will not work.")
    missing = [name for name, version in present.items() if version is None]
    if missing:
        install([requirement for name, requirement in compatible_requirements(found).items() if name in missing])


def is_run_by_webui(working_folder: Path) -> bool:
    """Whether a webui runs this; A1111 and all Forges use their own folder as the working folder."""
    return (working_folder / "modules" / "launch_utils.py").is_file()


def compatible_requirements(found: Mapping[str, str | None]) -> dict[str, str]:
    """Package → requirement that can be imported with the host's versions; pip picks the newest that resolves.

    No package's metadata says that diffusers 0.36 and later need PyTorch 2.6 and safetensors 0.8, and that peft 0.14
    and later import names that old versions of transformers and accelerate lack.
    """
    new_base = release(found["torch"]) >= (2, 6) and release(found["safetensors"]) >= (0, 8)
    new_hugging = release(found["transformers"]) >= (4, 49) and release(found["accelerate"]) >= (1, 0)
    return {
        "diffusers": "diffusers>=0.36,<=0.42.1" if new_base else "diffusers>=0.31,<=0.35.2",
        "peft": "peft>=0.17,<=0.21.2" if new_hugging else "peft==0.13.2",
        "prodigyopt": "prodigyopt==1.1.2",
        **ANY_VERSION,
    }


def release(version: str | None) -> tuple[int, int]:
    """`2.1.2+cu121` → (2, 1); (0, 0) for a package that is not installed."""
    match = re.match(r"(\d+)\.(\d+)", version or "")
    return (int(match[1]), int(match[2])) if match else (0, 0)


def installed_version(name: str) -> str | None:
    """The version of a package in this Python, None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def constraints() -> list[str]:
    """`name==version` for every installed package, so that pip cannot change any."""
    pinned: dict[str, str] = {}
    for package in importlib.metadata.distributions():
        name, version = package.metadata["Name"], package.metadata["Version"]
        if name and version and _CLEAN_NAME.fullmatch(name) and _CLEAN_VERSION.fullmatch(version):
            pinned.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)
    return [f"{name}=={version}" for name, version in sorted(pinned.items())]


def install(requirements: list[str]) -> None:
    """Install the requirements under the constraints; a failure is reported and changes nothing."""
    command = installer()
    if command is None:
        return report_failure(requirements, "neither pip nor uv was found")
    print(f"[{NAME}] installing {', '.join(requirements)} …", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder) / "constraints.txt"
        pinned.write_text("\n".join(constraints()), encoding="utf-8")
        try:
            done = subprocess.run(
                [*command, *requirements, "-c", str(pinned)],
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=MAX_SECONDS,
                check=False,
                env={**os.environ, "UV_HTTP_TIMEOUT": "15"},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return report_failure(requirements, str(error))
    if done.returncode:
        return report_failure(requirements, error_line(done.stderr))
    return None


def installer() -> list[str] | None:
    """The install command: this Python's pip, or uv if the webui's environment has no pip; None without either."""
    if importlib.util.find_spec("pip"):
        short = ["--retries", "1", "--timeout", "15", "--disable-pip-version-check", "--no-input", "--quiet"]
        return [sys.executable, "-m", "pip", "install", *short, "--prefer-binary"]
    uv = shutil.which("uv")
    return [uv, "pip", "install", "--quiet", "--python", sys.executable] if uv else None


def error_line(messages: str) -> str:
    """The last error line of pip's output."""
    errors = [line.strip() for line in messages.splitlines() if line.strip().lower().startswith("error")]
    return errors[-1] if errors else "pip failed"


def report_failure(requirements: list[str], reason: str) -> None:
    """Print that the trainer is not available; the webui starts anyway."""
    print(
        f"[{NAME}] {', '.join(requirements)} could not be installed ({reason}). The webui starts without the "
        "trainer and tries again at the next start."
    )


if __name__ == "__main__":
    main()
