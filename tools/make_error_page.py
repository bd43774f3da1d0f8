"""Writes docs/errors.md: every error message a user can meet, read from the sources.

python -m tools.make_error_page

The sources are parsed, not run. A message is what an error class of `core/errors.py` is called with, what stands in a
`Problem` of level "error", and what a ValueError says that refuses a setting's value. Parts that are only known when
it happens are shown as …; texts kept in a variable, passed as an argument or returned by a function of the same file
are followed.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.core.wording import located

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lib_lora_train"
PAGE = ROOT / "docs" / "errors.md"

ROOMS: Mapping[str, str] = {
    "launch": "Starting and installing",
    "config": "Settings",
    "dataset": "Images and captions",
    "dataset_tools": "Checking, cropping, tagging and editing a dataset",
    "models": "Checkpoints",
    "adapters": "LoRA files and layers",
    "formats": "Settings files of this and other programs",
    "methods": "Training something other than a LoRA",
    "training": "Training",
    "sampling": "Samples and grids",
    "evaluation": "Measuring what a LoRA has learnt",
    "lora_tools": "Checking, converting and merging LoRAs",
    "hosts": "The webui",
    "runs": "Runs and the queue",
    "api": "The Python API",
    "web": "The page and the HTTP API",
    "ui": "The tab",
    "cli": "The command line",
    "core": "Files and paths",
}
UNKNOWN = "…"
_PLAIN_PROBLEMS = {"error_at": (0, 1)}  # function → the places of `where` and `message`
_MOST_VARIANTS = 8
_DEEPEST = 6
_HEAD = """# Error messages

<!-- Made by tools/make_error_page.py from the sources. Do not edit. -->

Every error message of the program, by the place where it comes up. Search this page for a few words of yours;
… stands for a name, number or path. Most messages say what to do. [Troubleshooting](troubleshooting.md) helps where
training works and the result is not what you want.
"""


@dataclass(frozen=True, order=True)
class Message:
    """A message's text, the setting or file before it ("" for none, … where it is not known), and its error class."""

    text: str
    where: str
    error: str


class Source:
    """One source file, in which texts can be followed to where they are written."""

    def __init__(self, code: str) -> None:
        self.tree = ast.parse(code)
        self.functions = {
            n.name: n for n in ast.walk(self.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        self.parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def messages(self, errors: frozenset[str], *, with_values: bool) -> Iterator[Message]:
        """Every message in the file; `with_values`: those of ValueErrors too."""
        for call in (node for node in ast.walk(self.tree) if isinstance(node, ast.Call)):
            name = _called(call)
            if name == "Problem" and len(call.args) in (3, 4) and _is_text(call.args[0], "error"):
                yield from self._spoken(call.args[2], call.args[1], "ConfigError")
            elif name in _PLAIN_PROBLEMS and name not in self.functions:
                where, message = _PLAIN_PROBLEMS[name]
                yield from self._spoken(call.args[message], call.args[where], "ConfigError")
            elif name == "SettingsFileError":
                yield from self._spoken(call.args[1], None, name, before=f"{UNKNOWN} ")
            elif name in errors and call.args:
                yield from self._spoken(call.args[0], None, name)
            elif with_values and name == "ValueError" and call.args:
                yield from self._spoken(call.args[0], ast.Name("setting"), "ConfigError")

    def _spoken(self, message: ast.expr, where: ast.expr | None, error: str, before: str = "") -> Iterator[Message]:
        places = [""] if where is None else self.texts(where)
        place = places[0] if len(places) == 1 else UNKNOWN
        for text in self.texts(message):
            if re.search(r"[A-Za-z]{3}", text):
                yield Message(_tidy(before + text), _tidy(place), error)

    def texts(self, node: ast.expr, depth: int = 0) -> list[str]:
        """What the expression may be as text; unknown parts are …"""
        if depth > _DEEPEST:
            return [UNKNOWN]
        found = self._texts(node, depth + 1)
        return list(dict.fromkeys(found))[:_MOST_VARIANTS]

    def _texts(self, node: ast.expr, depth: int) -> list[str]:
        if isinstance(node, ast.Constant):
            return [node.value] if isinstance(node.value, str) else [UNKNOWN]
        if isinstance(node, ast.JoinedStr):
            return self._joined([self.texts(part, depth) for part in node.values])
        if isinstance(node, ast.FormattedValue):
            return [UNKNOWN] if node.conversion == ord("r") else self.texts(node.value, depth)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._joined([self.texts(node.left, depth), self.texts(node.right, depth)])
        if isinstance(node, ast.IfExp):
            return [*self.texts(node.body, depth), *self.texts(node.orelse, depth)]
        if isinstance(node, ast.Name):
            return self._of_name(node, depth)
        if isinstance(node, ast.Call):
            return self._of_call(node, depth)
        return [UNKNOWN]

    @staticmethod
    def _joined(parts: list[list[str]]) -> list[str]:
        return ["".join(choice) for choice in itertools.islice(itertools.product(*parts), _MOST_VARIANTS)]

    def _of_name(self, name: ast.Name, depth: int) -> list[str]:
        """What is assigned to the name in its function or, for a parameter, what callers in the file pass."""
        function = self._function_around(name)
        values = self._assigned_before(name) or _constants(self.tree, name.id)
        if values:
            return [text for value in values for text in self.texts(value, depth)]
        if function is None or name.id not in _parameters(function):
            return [UNKNOWN]
        place = _parameters(function).index(name.id)
        calls = [n for n in ast.walk(self.tree) if isinstance(n, ast.Call) and _called(n) == function.name]
        passed = [call.args[place] for call in calls if len(call.args) > place]
        return [text for value in passed for text in self.texts(value, depth)] or [UNKNOWN]

    def _of_call(self, call: ast.Call, depth: int) -> list[str]:
        """What a function of this file returns; of `"…".format()` the text, of `wording.count` the plural."""
        noun = call.args[-1] if _called(call) == "count" and len(call.args) > 1 else None
        if isinstance(noun, ast.Constant):
            return [f"{UNKNOWN} {noun.value!s}{'s' if len(call.args) == 2 else ''}"]
        if isinstance(call.func, ast.Attribute) and call.func.attr == "format":
            return [re.sub(r"\{[^}]*\}", UNKNOWN, text) for text in self.texts(call.func.value, depth)]
        function = self.functions.get(_called(call)) if isinstance(call.func, ast.Name) else None
        if function is None:
            return [UNKNOWN]
        returned = [n.value for n in ast.walk(function) if isinstance(n, ast.Return) and n.value]
        return [text for value in returned for text in self.texts(value, depth)] or [UNKNOWN]

    def _assigned_before(self, name: ast.Name) -> list[ast.expr]:
        """The values that the name may have where it is used: its last assignment, or those in branches before."""
        found: list[ast.expr] = []
        node: ast.AST = name
        while node in self.parents and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for statement in reversed(_statements_before(self.parents[node], node)):
                found += _assigned_in(statement, name.id)
                if isinstance(statement, ast.Assign) and found:
                    return found
            node = self.parents[node]
        return found

    def _function_around(self, node: ast.AST) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                return node
        return None


def _called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def _is_text(node: ast.expr, text: str) -> bool:
    return isinstance(node, ast.Constant) and node.value == text


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    return [argument.arg for argument in function.args.args if argument.arg != "self"]


def _statements_before(parent: ast.AST, node: ast.AST) -> list[ast.stmt]:
    """The statements before `node` in the same block."""
    for block in ("body", "orelse", "finalbody"):
        statements = getattr(parent, block, None)
        if isinstance(statements, list) and node in statements:
            return statements[: statements.index(node)]
    return []


def _assigned_in(statement: ast.AST, name: str) -> list[ast.expr]:
    """What the statement, or one within it, assigns to the name."""
    return [
        node.value
        for node in ast.walk(statement)
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]
    ]


def _constants(module: ast.Module, name: str) -> list[ast.expr]:
    return [value for node in module.body if isinstance(node, ast.Assign) for value in _assigned_in(node, name)]


def _tidy(text: str) -> str:
    """One line; neighbouring unknown parts are one."""
    return re.sub(r"…(?:[ ,/×]*…)+", UNKNOWN, " ".join(text.split()))


def error_classes() -> frozenset[str]:
    """The classes of the error tree whose first argument is the message."""
    tree = ast.parse((PACKAGE / "core" / "errors.py").read_text(encoding="utf-8"))
    known = {"LoraTrainError"}
    of_problems = {"ConfigError"}  # this class and those below it hold Problems
    for node in tree.body:  # a class stands below its base
        bases = (
            {base.id for base in node.bases if isinstance(base, ast.Name)} if isinstance(node, ast.ClassDef) else set()
        )
        if isinstance(node, ast.ClassDef) and known & bases:
            known.add(node.name)
            if of_problems & bases:
                of_problems.add(node.name)
    return frozenset(known - of_problems)


def messages_by_room() -> dict[str, list[Message]]:
    """Room → its messages, sorted by their text, each once."""
    found: dict[str, set[Message]] = {room: set() for room in ROOMS}
    launcher = Source((ROOT / "launch.py").read_text(encoding="utf-8"))
    found["launch"] |= set(launcher.messages(frozenset({"SetupError"}), with_values=False))
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0]
        if room in found:
            source = Source(path.read_text(encoding="utf-8"))
            found[room] |= set(source.messages(error_classes(), with_values=room == "config"))
    return {room: sorted(messages, key=_order) for room, messages in found.items() if messages}


def _order(message: Message) -> tuple[str, str, str, str]:
    return message.text.lstrip("… :").lower(), message.where, message.error, message.text  # the text itself breaks ties


def error_page() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD]
    for room, messages in messages_by_room().items():
        parts += [f"## {ROOMS[room]}\n", "\n".join(dict.fromkeys(map(_line, messages))) + "\n"]
    return "\n".join(parts)


def _line(message: Message) -> str:
    where = f"`{message.where}`" if message.where not in ("", UNKNOWN) else message.where
    return f"- {located(where, _escaped(message.text))} *({message.error})*"


def _escaped(text: str) -> str:
    """The text as Markdown that shows it as it is; what stands in backticks stays code."""
    parts = text.split("`")
    plain = [re.sub(r"([\\*_\[\]])", r"\\\1", part).replace("<", "&lt;").replace(">", "&gt;") for part in parts[::2]]
    return "".join(
        part for pair in itertools.zip_longest(plain, (f"`{c}`" for c in parts[1::2])) for part in pair if part
    )


def main() -> None:
    """Write the page."""
    PAGE.write_text(error_page(), encoding="utf-8", newline="\n")
    print(f"Written: {PAGE}")


if __name__ == "__main__":
    main()
