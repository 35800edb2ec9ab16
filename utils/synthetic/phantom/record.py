"""The record of the phantoms in a folder: `phantom.json`, with the seeds that they were made from.

Their names may be those of scans of VerSe, so the record tells them apart. It holds the seed of those named
like VerSe's, and of those looked for their levels the numbers for training, validation and test, by variants
and seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import written_whole
from utils.synthetic.phantom.ranges import USUAL

#: Stands in a folder of phantoms.
PHANTOM_RECORD = "phantom.json"


def enter_phantoms(
    data_dir: Path,
    counts: tuple[int, int, int],
    *,
    seed: int,
    variants: str | None,
    ranges: str = USUAL.name,
) -> None:
    """Enter phantoms that are to be made into the record of a folder.

    Parameters
    ----------
    data_dir : Path
        The folder, made if it is not there.
    counts : tuple of int
        Series for training, validation and test.
    seed : int
        Their seed.
    variants : str, optional
        What they were looked for; None for those named like VerSe's, of which a folder holds one seed.
    ranges : str
        Name of the ranges that they are drawn in. Of those named like VerSe's a folder holds one kind; others
        have a list, and names, of their own.

    Raises
    ------
    ValueError
        If the record cannot be read, if it holds another seed or other ranges, or if a spine would change
        its split.
    """
    path = data_dir / PHANTOM_RECORD
    found = _read_record(path) if path.exists() else {}
    if variants is None:
        if found.get("seed", seed) != seed:
            raise ValueError(
                f"{data_dir}: expected phantoms of seed {seed}, found those of seed {found['seed']}."
            )
        if "seed" in found and found.get("ranges", USUAL.name) != ranges:
            raise ValueError(
                f"{data_dir}: expected phantoms of the {ranges} ranges, "
                f"found those of the {found.get('ranges', USUAL.name)} ones."
            )
        entered = {**found, "seed": seed} | ({} if ranges == USUAL.name else {"ranges": ranges})
    else:
        variants = set_name(variants, ranges)
        seeds = found.get("variants", {}).get(variants, {})
        counts = _grown_counts(data_dir, seeds.get(str(seed), (0, 0, 0)), counts)
        sets = {**found.get("variants", {}), variants: {**seeds, str(seed): list(counts)}}
        entered = {**found, "variants": sets}
    if entered != found:
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(entered))


def set_name(variants: str, ranges: str) -> str:
    """Give the name of a set of spines looked for their levels, such as "half", or "widehalf"."""
    return variants if ranges == USUAL.name else ranges + variants


def _read_record(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if not (isinstance(found["seed"], int) if "seed" in found else found["variants"]):
            raise TypeError(found)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the seed of the phantoms here, found {error!r}.") from None
    return found


def _grown_counts(
    data_dir: Path, known: tuple[int, int, int], counts: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Give the larger of two sets of one seed; the spines that they share must lie in the same split."""
    before, now = (np.repeat([0, 1, 2], numbers) for numbers in (known, counts))
    shared = min(len(before), len(now))
    if not np.array_equal(before[:shared], now[:shared]):
        raise ValueError(
            f"{data_dir}: expected the spines of this seed to stay in their splits, {tuple(known)} for "
            f"training, validation and test, received {tuple(counts)}; only the last split can grow, others "
            "take another seed."
        )
    return known if len(before) > len(now) else counts
