"""Updates the rooms and their imports in docs/architecture.md from the source code.

python -m tools.make_architecture_page
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGE = "lib_lora_train"
BEGIN = "<!-- Made by tools/make_architecture_page.py. Do not edit up to the next marker. -->"
END = "<!-- End of the generated part. -->"

ROOMS: dict[str, str] = {
    "core": "errors, events, progress, seeding, writing files: what every room needs",
    "config": "every setting declared once, presets, validation of a whole configuration",
    "dataset": "folders → dataset → plan: images, captions, buckets, repeats",
    "dataset_tools": "dataset check and repairs, caption edits, taggers, cropping, upscaling",
    "models": "checkpoint → UNet, text encoders, VAE; latents, prompts, noise schedule, caches",
    "adapters": "every kind of LoRA, one file per family; injection into a model; LoRA files",
    "formats": "metadata in LoRA files, TOML, import and export of other trainers' settings",
    "methods": "ways to train: a LoRA, or something else; one file each",
    "training": "the training loop: loss, noise, optimisers, schedules, EMA, resuming",
    "sampling": "samplers, sample images, the grid of epochs and prompts",
    "evaluation": "what a LoRA has learnt, measured with the loaded model",
    "lora_tools": "check, convert, resize, extract and merge LoRA files",
    "hosts": "where the model and the GPU come from: a webui, or none",
    "runs": "a whole run: planning, estimates, run folder, queue, history, logs",
    "api": "the Python API: plan, train, load and merge",
    "web": "HTTP routes and the state behind the page, without gradio",
    "ui": "the gradio page: its panels and callbacks",
    "cli": "the command line and the terminal output",
}


def architecture_section() -> str:
    """The generated part of the page: a diagram and a table of the rooms."""
    imports = room_imports()
    diagram = [f"    {room} --> {target}" for room, targets in direct_imports(imports).items() for target in targets]
    rows = [
        f"| `{room}` | {ROOMS[room]} | {', '.join(f'`{target}`' for target in imports[room]) or '–'} |"
        for room in reversed(list(ROOMS))
    ]
    return "\n".join(
        [
            BEGIN,
            "",
            "```mermaid",
            "flowchart TD",
            *diagram,
            "```",
            "",
            "| room | contents | imports from |",
            "|---|---|---|",
            *rows,
            "",
            END,
        ]
    )


def room_imports() -> dict[str, tuple[str, ...]]:
    """The rooms that each room imports from, in the order of `ROOMS`."""
    folders = {path.name for path in (ROOT / PACKAGE).iterdir() if path.is_dir() and any(path.glob("*.py"))}
    if folders != set(ROOMS):
        raise SystemExit(f"Update ROOMS in tools/make_architecture_page.py: {sorted(folders ^ set(ROOMS))} differ.")
    found = {room: set(_imported_rooms(room)) - {room} for room in ROOMS}
    return {room: tuple(target for target in ROOMS if target in found[room]) for room in ROOMS}


def _imported_rooms(room: str) -> Iterator[str]:
    for file in (ROOT / PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            yield from (name.split(".")[1] for name in names if name.startswith(f"{PACKAGE}."))


def direct_imports(imports: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """`imports` without those that also exist by way of another room, so that the diagram stays readable."""

    def reachable(room: str) -> set[str]:
        return {room}.union(*(reachable(target) for target in imports[room]))

    def is_direct(room: str, target: str) -> bool:
        return not any(target in reachable(other) for other in imports[room] if other != target)

    return {room: tuple(t for t in targets if is_direct(room, t)) for room, targets in imports.items()}


def architecture_page() -> str:
    """The page with an up-to-date generated part."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + architecture_section() + after


def main() -> None:
    """Update the page."""
    PAGE.write_text(architecture_page(), encoding="utf-8", newline="\n")
    print(f"Written: {PAGE}")


if __name__ == "__main__":
    main()
