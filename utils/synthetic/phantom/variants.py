"""Which spines to make where rare levels are asked for: T13, L6 and T12 absent.

Levels are not forced upon a subject: subjects that have them are looked for, so that all else about them
stays natural. Every other scan ends at C1 or at the sacrum, the rest shows neither.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from utils.synthetic.phantom.ranges import USUAL, Ranges
from utils.synthetic.phantom.subject import draw_subject
from utils.verse.labels import code_of_name

#: Levels in the order in which spines take them, again and again: about as often as in VerSe (L6 .12,
#: T13 .05, no T12 .02), in half of the spines, or in all.
VARIANTS = {
    "natural": (
        *("none", "none", "L6", "none", "none", "no T12", "none", "none", "T13", "none"),
        *("none", "none", "none", "L6", "none", "none", "none", "none", "none", "none"),
    ),
    "half": (
        *("L6", "none", "T13", "none", "none", "no T12"),
        *("none", "L6", "none", "T13", "no T12", "none"),
    ),
    "rare": ("T13", "no T12", "L6", "no T12", "T13"),
}
VARIANT_STYLES = ("2019", "2020-ax", "2019", "2020-sag")
#: Vertebrae seen whole.
LEAST_LENGTH, MOST_LENGTH = 4, 10
#: Keeps the draw of a field of view apart from those of the subjects.
_FIELD = 11


@dataclass(frozen=True)
class ChosenSpine:
    """One spine to make: the number of its subject, its style, and the first and last vertebra seen whole."""

    subject: int
    style: str
    whole: tuple[int, int]


def choose_spines(count: int, *, seed: int, variants: str, ranges: Ranges = USUAL) -> list[ChosenSpine]:
    """Look for subjects with the levels asked for.

    Parameters
    ----------
    count : int
        Number of spines; the first ones stay the same if more are asked for.
    seed : int
        Seed of the data set.
    variants : str
        A key of `VARIANTS`.
    ranges : Ranges
        Bounds of what is drawn of a subject.

    Returns
    -------
    list of ChosenSpine
    """
    order = VARIANTS[variants]
    waiting: dict[str, list[tuple[int, tuple[int, ...]]]] = {name: [] for name in VARIANTS["half"]}
    subjects = itertools.count()
    chosen = []
    for position in range(count):
        variant = order[position % len(order)]
        while not waiting[variant]:
            subject = next(subjects)
            anatomy = draw_subject(np.random.default_rng([seed, subject]), ranges=ranges)
            codes = tuple(vertebra.code for vertebra in anatomy.vertebrae)
            waiting[variant_of(codes)].append((subject, codes))
        subject, codes = waiting[variant].pop(0)
        whole = _draw_field(np.random.default_rng([seed, position, _FIELD]), codes, variant, position)
        chosen.append(ChosenSpine(subject, VARIANT_STYLES[position // 2 % len(VARIANT_STYLES)], whole))
    return chosen


def variant_of(codes: tuple[int, ...]) -> str:
    """Give the variant of a spine: "T13", "no T12", "L6" (also with another) or "none"."""
    names = {"T13": code_of_name("T13") in codes, "no T12": code_of_name("T12") not in codes}
    return next((name for name, has in names.items() if has), "L6" if code_of_name("L6") in codes else "none")


def _draw_field(
    rng: np.random.Generator, codes: tuple[int, ...], variant: str, position: int
) -> tuple[int, int]:
    """Draw the first and the last vertebra to be seen: with an end of the spine, or in its middle."""
    count, total = int(rng.integers(LEAST_LENGTH, MOST_LENGTH + 1)), len(codes)
    if position % 2 == 0:
        at_the_top = variant == "none" and position % 4 == 0
        start = 0 if at_the_top else total - count
    else:
        # From C3 on; down to the last but two, so that the sacrum stays below the field of view.
        start = int(rng.integers(2, total - 2 - count + 1))
        if variant != "none":  # what is rare lies at the lower end of the thorax
            start = int(np.clip(rng.integers(14, 18), 2, total - 2 - count))
    return codes[start], codes[start + count - 1]
