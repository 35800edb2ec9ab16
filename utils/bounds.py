"""Bounds of settings: each stands with its field, and is checked when a settings object is made."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

_RULE = "rule"
_checks_now = contextvars.ContextVar("_checks_now", default=True)


@dataclass(frozen=True)
class Rule:
    """What a value may be.

    Attributes
    ----------
    words : str
        What is expected, for the message about another value.
    holds : callable of a value to bool
        Whether a value is as expected.
    """

    words: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class CheckedSettings:
    """Settings that check the bounds of their fields when they are made."""

    def __post_init__(self) -> None:
        """Raise a `ValueError` that names the field, what was expected and what was received."""
        if not _checks_now.get():
            return
        for name, text in wrong_values(self):
            raise ValueError(f"{name}: {text}")

    def joint_rules(self) -> dict[str, Rule]:
        """Give the rules of fields that depend on other fields, by name; asked for when all others hold."""
        return {}


def bounded(default: Any, rule: Rule) -> Any:
    """Give a dataclass field with a default and a rule; a default of None means that None is allowed too."""
    return dataclasses.field(default=default, metadata={_RULE: rule})


def number(
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Rule:
    """Give the rule of a finite number between two limits, each of which belongs to it or does not.

    Parameters
    ----------
    least, above : float, optional
        Lower limit that the number may reach, or that it must exceed.
    most, below : float, optional
        Upper limit that the number may reach, or that it must stay below.

    Returns
    -------
    Rule
        Refuses infinity and NaN.
    """
    limits = (
        ("of {} or more", operator.ge, least),
        ("over {}", operator.gt, above),
        ("up to {}", operator.le, most),
        ("below {}", operator.lt, below),
    )
    given = [(words.format(limit), keeps, limit) for words, keeps, limit in limits if limit is not None]

    def holds(value: Any) -> bool:
        is_finite = isinstance(value, Real) and math.isfinite(value)
        return is_finite and all(keeps(value, limit) for _, keeps, limit in given)

    return Rule(f"a number {', '.join(words for words, *_ in given) or 'that is finite'}", holds)


def whole(least: int, *, most: int | None = None) -> Rule:
    """Give the rule of a whole number from `least` up, or up to `most`."""
    limits = number(least=least, most=most)
    return Rule(
        limits.words.replace("a number", "a whole number"),
        lambda value: isinstance(value, Integral) and limits.holds(value),
    )


def multiple_of(step: int) -> Rule:
    """Give the rule of a positive multiple of a whole number."""
    return Rule(
        f"a positive multiple of {step}", lambda value: whole(1).holds(value) and int(value) % step == 0
    )


def several(
    rule: Rule, *, count: int | None = None, least: int = 0, rising: bool = False, not_all_0: bool = False
) -> Rule:
    """Give the rule of a tuple.

    Parameters
    ----------
    rule : Rule
        That of every value.
    count : int, optional
        Number of values.
    least : int
        Smallest number of values, where `count` does not say it.
    rising : bool
        Whether no value may be smaller than the one before, as in a range.
    not_all_0 : bool
        Whether one of them at least must not be 0, as among shares.

    Returns
    -------
    Rule
    """
    length = f"{count} values" if count is not None else f"{least} or more values" if least else "values"
    order = " from low to high" if rising else ""
    words = [f"{length}{order}", *["not all 0"] * not_all_0, f"each {rule.words}"]

    def holds(values: Any) -> bool:
        return (
            isinstance(values, (tuple, list))
            and (len(values) >= least if count is None else len(values) == count)
            and all(map(rule.holds, values))
            and not (rising and list(values) != sorted(values))
            and not (not_all_0 and not any(values))
        )

    return Rule(", ".join(words), holds)


def low_to_high(rule: Rule) -> Rule:
    """Give the rule of a range: two numbers, of which the first is not the larger one."""
    return several(rule, count=2, rising=True)


#: Whole numbers.
FROM_0, FROM_1 = whole(0), whole(1)
#: Numbers; a share is a probability too.
NOT_NEGATIVE, POSITIVE = number(least=0), number(above=0)
SHARE, BELOW_1 = number(least=0, most=1), number(least=0, below=1)


def wrong_values(settings: Any) -> list[tuple[str, str]]:
    """Give the fields of a settings object, and of those in it, that are out of bounds.

    Parameters
    ----------
    settings : CheckedSettings
        Settings, checked yet or not.

    Returns
    -------
    list of (str, str)
        Name of each field, such as "augmentation.zoom_p", and what was expected and received.
    """
    wrong: list[tuple[str, str]] = []
    for field in dataclasses.fields(settings):
        value, rule = getattr(settings, field.name), field.metadata.get(_RULE)
        if isinstance(value, CheckedSettings):
            wrong += [(f"{field.name}.{name}", text) for name, text in wrong_values(value)]
        elif rule is not None and not (value is None and field.default is None):
            wrong += _broken({field.name: rule}, settings)
    return wrong or _broken(settings.joint_rules(), settings)


def _broken(rules: dict[str, Rule], settings: Any) -> list[tuple[str, str]]:
    return [
        (name, f"expected {rule.words}, received {getattr(settings, name)!r}.")
        for name, rule in rules.items()
        if not rule.holds(getattr(settings, name))
    ]


@contextlib.contextmanager
def checks_put_off() -> Iterator[None]:
    """Let settings be made unchecked inside a `with` block, and check them later, with `wrong_values`."""
    token = _checks_now.set(False)
    try:
        yield
    finally:
        _checks_now.reset(token)
