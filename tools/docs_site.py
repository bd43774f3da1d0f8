"""What MkDocs cannot do by itself for our pages; `mkdocs.yml` names this file as a hook.

Pages link to files outside docs/ (`../CHANGELOG.md`, `../examples/style.toml`), because that is where they are when the
pages are read on the code host. Here those files are added to the site, in the same places below its root, and the
links are rewritten to match.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "assets/demo/README.md",
    "assets/tiny-sd/README.md",
    "assets/tiny-sd/*.png",
    "examples/README.md",
    "examples/*.toml",
)
"""The files outside docs/ that pages may link to, as patterns below the root."""

_LINK = re.compile(r"(\]\(|(?:src|href)=\")([^)\s\"#]+)")


def outside_files() -> list[str]:
    """Their paths below the root."""
    found = (path for pattern in OUTSIDE for path in sorted(ROOT.glob(pattern)))
    return [path.relative_to(ROOT).as_posix() for path in found]


def on_config(config: Any) -> Any:
    """MkDocs' event: headings get the anchors that they have on code hosts."""
    config.mdx_configs["toc"] = {**config.mdx_configs.get("toc", {}), "slugify": slug}
    return config


def on_files(files: Any, config: Any) -> Any:
    """MkDocs' event: add the files from outside docs/."""
    from mkdocs.structure.files import File

    for path in outside_files():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_others: Any) -> str:
    """MkDocs' event: rewrite the links of a page."""
    path = page.file.src_uri
    return with_site_links(markdown, path, is_outside=path in outside_files())


def with_site_links(markdown: str, page: str, *, is_outside: bool) -> str:
    """The page with every link to a file that is elsewhere on the site pointing there.

    `page` is its path on the site. On the code host it is in docs/ or, if `is_outside`, at that path below the root.
    """
    folder = PurePosixPath(page).parent
    origin = folder if is_outside else PurePosixPath("docs") / folder

    def rewritten(match: re.Match[str]) -> str:
        before, link = match.groups()
        if re.match(r"[a-z]+:|/", link):
            return match[0]
        target = _joined(origin, link)
        if target.parts[:1] == ("docs",):
            target = target.relative_to("docs")
        return before + _relative(target, folder)

    return _LINK.sub(rewritten, markdown)


def slug(text: str, separator: str) -> str:
    """A heading's anchor, as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", separator)


def _joined(folder: PurePosixPath, link: str) -> PurePosixPath:
    """The path that a relative link leads to, without `..`."""
    parts: list[str] = []
    for part in (*folder.parts, *PurePosixPath(link).parts):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        else:
            parts.append(part)
    return PurePosixPath(*parts)


def _relative(target: PurePosixPath, folder: PurePosixPath) -> str:
    """The link from a page in `folder` to `target`."""
    shared = 0
    while target.parts[: shared + 1] == folder.parts[: shared + 1] and shared < len(folder.parts):
        shared += 1
    return "/".join([*[".."] * (len(folder.parts) - shared), *target.parts[shared:]])
