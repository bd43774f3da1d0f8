"""Which layers fit the patterns of `layer_ranks` and `layer_lr_weights`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import regex

from lib_lora_train.config.layer_patterns import LayerRule

_SECONDS = 1.0  # for one name; a pattern that takes longer would never end


def fits(rule: LayerRule, names: Iterable[str]) -> bool:
    """Whether one of a layer's names fits. ValueError if the pattern cannot be read or takes too long."""
    try:
        compiled = regex.compile(rule.expression)
        return any(compiled.fullmatch(name, timeout=_SECONDS) for name in names)
    except regex.error as error:
        raise ValueError(f"{rule.pattern!r} is not a regular expression: {error}") from None
    except TimeoutError:
        raise ValueError(f"{rule.pattern!r} takes too long. Write it without repetitions inside others") from None


def first_fit(rules: Sequence[LayerRule], names: Sequence[str]) -> LayerRule | None:
    """The first rule that fits one of the names."""
    return next((rule for rule in rules if fits(rule, names)), None)
