"""Trial of the walk's end rule on perfect heatmaps: which vertebra does each rule stop at?

Builds columns of vertebrae with anatomical distances between the centres of their bodies, lays the
training target of the heatmap network over fields of view of several sizes, and reads the heat at the
centre of every vertebra's mask, which is what the walk reads. The distances are those of a typical adult,
rounded; compare the heights of bodies and discs in Busscher et al., European Spine Journal 19 (2010) 1104.

Reads and writes no file.

    python -m benchmarks.trial_end_rule

Takes a second. Result: the absolute rule finds no end below a column that ends in the scan (it never drops a
vertebra, but goes on to whatever lies below), and is a matter of .01 at L5 of a whole spine. The relative
rule keeps every vertebra (smallest ratio .63) and ends every column (largest ratio .49) but one, C1-L6 in
a scan that shows 200 mm more below (.52); reading the heat per slice changes nothing. A column in the table:

- `lowest`, `last`: heat at the least heated vertebra and at the last one, at the mask's centre
- `paper`: the vertebra the absolute rule ends with (heat under .3)
- `ratio in`: the smallest ratio of a vertebra's heat to the mean at the three above it
- `ratio out`: the same ratio for one vertebra more, below the last of the column
- `full`: the vertebra the relative rule ends with (ratio under .5); one more than the last is `+1`
- `profile`: the same with the largest heat of each slice in place of the heat at the centre
"""

from __future__ import annotations

import itertools

import numpy as np

LEVELS = [*(f"C{i}" for i in range(1, 8)), *(f"T{i}" for i in range(1, 13)), *(f"L{i}" for i in range(1, 7))]
# From each body centre of LEVELS to the next, in mm; the last one leads from L6 to S1.
STEPS_MM = [16, *[17] * 5, 18, 20, 21, 21, 22, 22, 23, 24, 25, 26, 27, 29, 31, 33, 35, 36, 36, 35, 34]
HEATMAP_SHAPE = np.array((64, 64, 128))
SIGMA_VOXELS = 10.0
POSTERIOR_MM = 11.0
HEAT_THRESHOLD = 0.3
STRETCHES = ["C1-L6", "C1-L5", "T1-L5", "T9-L5", "L1-L5", "L3-L5", "C1-T5", "C5-L3", "T4-T12"]
# Width and depth of the scan, and what it shows above and below the column's outer centres, in mm.
FIELDS = [(80, 186, 25, 25), (150, 150, 40, 40), (200, 200, 20, 120), (400, 400, 60, 200)]


def column_mm(stretch: str) -> np.ndarray:
    """Give the positions in mm, downwards from 0, of a stretch's body centres and of the next one below."""
    first, last = (LEVELS.index(name) for name in stretch.split("-"))
    return np.concatenate([[0.0], np.cumsum(STEPS_MM[first : last + 1])])


def heat_at(column: np.ndarray, field: tuple[float, ...], offset_mm: float) -> np.ndarray:
    """Give the heat `offset_mm` behind each point of a column, the last of which gives no heat itself."""
    width, depth, above, below = field
    length = above + column[-2] + below
    sigma_p, _, sigma_i = SIGMA_VOXELS * np.array((depth, width, length)) / HEATMAP_SHAPE
    along = np.linspace(-above, column[-2] + below, HEATMAP_SHAPE[2])
    bodies = column[:-1]
    profile = np.exp(-((along[:, None] - bodies) ** 2) / (2 * sigma_i**2)).sum(1)
    heat = np.exp(-((column[:, None] - bodies) ** 2) / (2 * sigma_i**2)).sum(1)
    return heat / profile.max() * np.exp(-(offset_mm**2) / (2 * sigma_p**2))


def ratios_of(heat: np.ndarray) -> np.ndarray:
    """Give the ratio of every heat but the first to the mean of the (at most) three before it."""
    return np.array([heat[i] / heat[max(0, i - 3) : i].mean() for i in range(1, len(heat))])


def last_of(names: list[str], ends: np.ndarray) -> str:
    """Give the name at the first true value of `ends`, or the one that lies beyond the column."""
    return names[int(np.argmax(ends))] if ends.any() else "+1"


def row(stretch: str, field: tuple[float, ...]) -> str:
    """Give one line of the table."""
    column = column_mm(stretch)
    first = LEVELS.index(stretch.split("-")[0])
    names = LEVELS[first : first + len(column) - 1]
    mask, body = heat_at(column, field, POSTERIOR_MM), heat_at(column, field, 0.0)
    ratio, profile = ratios_of(mask), ratios_of(body)
    cells = [
        f"{mask[:-1].min():.2f}", f"{mask[-2]:.2f}", last_of(names, mask[:-1] < HEAT_THRESHOLD),
        f"{ratio[:-1].min():.2f}", f"{ratio[-1]:.2f}",
        last_of(names, ratio < 0.5), last_of(names, profile < 0.5),
    ]  # fmt: skip
    return f"{stretch:8}{field!s:24}" + "".join(f"{cell:>11}" for cell in cells)


def main() -> int:
    """Print the table."""
    titles = ["lowest", "last", "paper", "ratio in", "ratio out", "full", "profile"]
    print(f"{'column':8}{'width,depth,above,below':24}" + "".join(f"{title:>11}" for title in titles))
    for stretch, field in itertools.product(STRETCHES, FIELDS):
        print(row(stretch, field))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
