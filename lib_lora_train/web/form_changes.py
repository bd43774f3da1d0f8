"""Changes of the form by the server, and the way back.

The page owns the values of its form. To change them, the server stages a change, which the page applies when it next
sends its values. Every change keeps the form from before it, so that it can be undone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lib_lora_train.core.errors import HostError
from lib_lora_train.web.form import Form

Applied = tuple[str, ...]
"""The names of the presets that a form was filled in from."""
Change = Callable[[Form], tuple[dict[str, Any], str]]
"""From the form to the changed one, and a message about it."""


class FormChanges:
    """The staged change, the presets that were applied, and the form before the latest change."""

    def __init__(self) -> None:
        self.applied: Applied = ()
        self._staged: Change | None = None
        self._before: tuple[Form, Applied] | None = None

    def remember(self, form: Form) -> None:
        """Keep the form, which is about to be replaced."""
        self._before = dict(form), self.applied

    def stage(self, change: Change) -> None:
        """Hold a change until the page sends the values of its form."""
        self._staged = change

    def pop(self, form: Form) -> tuple[dict[str, Any], str]:
        """The form with the staged change applied, and a message about it. Later calls change nothing."""
        change, self._staged = self._staged, None
        if change is None:
            return dict(form), ""
        self.remember(form)
        return change(form)

    def stage_undo(self) -> None:
        """Stage the form from before the latest change; HostError if there is none. A second undo redoes it."""
        if self._before is None:
            raise HostError("There is no change of the settings to undo.")
        before, applied = self._before

        def restore(_: Form) -> tuple[dict[str, Any], str]:
            self.applied = applied
            return dict(before), "Your settings are back."

        self.stage(restore)
