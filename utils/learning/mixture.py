"""In what shares an epoch mixes CTs of phantoms, other CTs, and images drawn from the masks of both.

An item of an epoch is the number of a vertebra; where its image is drawn from its mask instead of read, the
count of all vertebrae is added. Without a mixture items are those with a CT, as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

#: Number that keeps the order within an epoch apart from the other random streams of a run.
_MIXED = 3


def item_groups(
    is_phantom: Sequence[bool], has_ct: Sequence[bool], has_mask: Sequence[bool]
) -> list[np.ndarray]:
    """Sort items into the four groups of a mixture.

    Parameters
    ----------
    is_phantom, has_ct, has_mask : sequence of bool, (n,)
        What is known of every vertebra.

    Returns
    -------
    list of np.ndarray of int, 4
        Items: CTs of phantoms, other CTs, masks of phantoms to draw from, other masks. Those drawn count
        from n.
    """
    phantom, ct, mask = (np.asarray(values, bool) for values in (is_phantom, has_ct, has_mask))
    return [
        np.flatnonzero(phantom & ct),
        np.flatnonzero(~phantom & ct),
        np.flatnonzero(phantom & mask) + len(phantom),
        np.flatnonzero(~phantom & mask) + len(phantom),
    ]


def group_counts(
    sizes: Sequence[int], shares: Sequence[float], count: int, *, option: str = "--mixture"
) -> list[int]:
    """Share the examples of an epoch out over groups, by the largest remainders.

    Parameters
    ----------
    sizes : sequence of int
        Items in each group; what would fall to an empty one goes to the others, in proportion.
    shares : sequence of float
        Shares, of any sum.
    count : int
        Examples in an epoch.
    option : str
        The option that the shares are those of, which errors name.

    Returns
    -------
    list of int
        Examples of each group, together `count`.

    Raises
    ------
    ValueError
        If a share is negative, or none that is positive belongs to a group with items.
    """
    if len(shares) != len(sizes) or min(shares) < 0:
        raise ValueError(f"Expected {len(sizes)} shares of 0 or more in {option}, received {tuple(shares)}.")
    wanted = np.array([share if size else 0.0 for share, size in zip(shares, sizes)])
    if not wanted.sum():
        raise ValueError(
            f"Expected items in a group with a share in {option}, found {tuple(sizes)} for {tuple(shares)}."
        )
    exact = count * wanted / wanted.sum()
    counts = np.floor(exact).astype(int)
    # Rounded, so that noise of the last bit does not decide between equal remainders.
    largest = np.argsort(-np.round(exact - counts, 9), kind="stable")
    counts[largest[: count - counts.sum()]] += 1
    return counts.tolist()


def mixed_epoch(
    groups: Sequence[np.ndarray],
    counts: Sequence[int],
    order: Callable[..., np.ndarray],
    *,
    seed: int,
    epoch: int,
) -> np.ndarray:
    """Give the items of an epoch: from every group as many as its share, in a common random order.

    Parameters
    ----------
    groups : sequence of np.ndarray of int
        Items of each group.
    counts : sequence of int
        From `group_counts`.
    order : callable (items, count, *, seed, epoch) -> np.ndarray
        `utils.learning.epochs.epoch_order`, by which each group goes on from epoch to epoch.
    seed, epoch : int
        What the order depends on.

    Returns
    -------
    np.ndarray of int
        The items, in order.
    """
    parts = [order(items, count, seed=seed, epoch=epoch) for items, count in zip(groups, counts) if count]
    return np.random.default_rng([seed, _MIXED, epoch]).permutation(np.concatenate(parts))
