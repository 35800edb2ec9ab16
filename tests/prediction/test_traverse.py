"""The walk down the spine, on small columns with exact answers and on real masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.prediction.column import AFFINE, CENTRES, column, heat_of, oracle
from utils.imaging.centroids import centroids_of_mask, read_centroids
from utils.imaging.volume import (
    Volume,
    read_mask,
    resample_labels,
    resized_grid,
    working_grid,
)
from utils.prediction.traverse import WalkSettings, walk
from utils.verse.labels import ranks_of_mask

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
SMALL = WalkSettings(patch_voxels=32, spacing_mm=2.0, min_volume_mm3=200.0)


def block_at(begin: tuple[int, int, int], size: int = 8) -> np.ndarray:
    """A cube of probability 1 in an empty patch of 32 voxels."""
    probability = np.zeros((32, 32, 32), np.float32)
    probability[tuple(slice(b, b + size) for b in begin)] = 1
    return probability


class Recorder:
    """A predictor that keeps what it was asked."""

    def __init__(self, predict: Callable[[np.ndarray, np.ndarray], np.ndarray]):
        self.predict = predict
        self.asked: list[int] = []

    def __call__(self, ct: np.ndarray, memory: np.ndarray) -> np.ndarray:
        self.asked.append(hash(ct.tobytes() + memory.tobytes()))
        return self.predict(ct, memory)


@pytest.fixture(scope="module")
def heat() -> Volume:
    return heat_of(CENTRES, column().shape, AFFINE, sigma=6.0)


def test_the_oracle_gives_every_vertebra_once_in_order(heat):
    result = walk(column(), heat, oracle, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, column().data)
    np.testing.assert_array_equal(result.labels.affine, AFFINE)
    np.testing.assert_allclose([v.centre for v in result.vertebrae], CENTRES)
    assert all(v.converged for v in result.vertebrae)
    # The patch of 32 voxels holds each next vertebra whole, so every centre is exact from the first look.
    assert [v.steps for v in result.vertebrae] == [3] * 6


def test_boxes_hold_the_vertebra_with_a_margin(heat):
    first = walk(column(), heat, oracle, settings=SMALL).vertebrae[0]
    np.testing.assert_array_equal(first.begin, [20 - 4 - 2, 22 - 5 - 2, 14 - 3 - 2])
    assert first.mask.shape == first.probability.shape == (13, 15, 11)
    assert first.mask.sum() == 9 * 11 * 7


def test_an_identical_patch_is_never_predicted_twice(heat):
    predict = Recorder(oracle)
    walk(column(), heat, predict, settings=SMALL)
    assert len(set(predict.asked)) == len(predict.asked)
    # Two a vertebra (the first look and the one at its centre; the third is a repeat), and one at the end.
    assert len(predict.asked) <= 2 * 6 + 1 + SMALL.max_steps_down


def test_a_heatmap_on_a_coarse_grid_leads_the_same_way():
    grid = resized_grid(column().grid, (10, 11, 21))
    to_fine = np.array([4.0, 4.0, 4.0])
    coarse = heat_of((CENTRES - 1.5) / to_fine, grid.shape, grid.affine, sigma=1.5)
    result = walk(column(), coarse, oracle, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, column().data)


def test_a_cold_heatmap_gives_no_vertebra(heat):
    cold = Volume(np.full_like(heat.data, 0.29), heat.affine)
    predict = Recorder(oracle)
    result = walk(column(), cold, predict, settings=SMALL)
    assert result.vertebrae == () and not result.labels.data.any() and not predict.asked


def test_an_empty_predictor_steps_down_and_ends(heat):
    predict = Recorder(lambda ct, memory: np.zeros_like(ct))
    result = walk(column(), heat, predict, settings=SMALL)
    assert result.vertebrae == ()
    # Heat of .3 from slice 5 to slice 73, a quarter of the patch is 8 voxels: no more than the limit.
    assert len(predict.asked) == SMALL.max_steps_down + 1


def test_a_gap_is_stepped_over(heat):
    gap = column()
    gap.data[gap.data < 4] = 0
    result = walk(gap, heat, oracle, settings=SMALL)
    np.testing.assert_array_equal(np.unique(gap.data[result.labels.data > 0]), [4, 5, 6])


def test_a_full_predictor_ends(heat):
    result = walk(column(), heat, lambda ct, memory: np.ones_like(ct), settings=SMALL)
    assert 1 <= len(result.vertebrae) <= SMALL.max_vertebrae


def test_a_drifting_predictor_ends_without_rest(heat):
    # Always 4 voxels (8 mm) below the patch's centre: no three centres are ever closer than 16 mm.
    predict = Recorder(lambda ct, memory: block_at((12, 12, 16)))
    result = walk(column(), heat, predict, settings=SMALL)
    assert not any(v.converged for v in result.vertebrae)
    assert result.vertebrae[0].steps == SMALL.max_steps + 1
    assert len(predict.asked) <= (SMALL.max_vertebrae + SMALL.max_steps_down + 1) * (SMALL.max_steps + 1)


def test_an_alternating_predictor_ends_at_the_mean(heat):
    asked = []

    def alternate(ct, memory):
        asked.append(1)
        return block_at((12, 12, 6 if len(asked) % 2 else 18))

    result = walk(column(), heat, alternate, settings=SMALL)
    assert result.vertebrae and not result.vertebrae[0].converged


def test_the_last_centres_are_averaged_and_looked_at_once_more():
    """A predictor that flips between two places: the mean of three centres decides."""
    marks = Volume(np.broadcast_to(np.arange(84, dtype=np.float32), (40, 44, 84)).copy(), AFFINE)
    start = heat_of(np.array([[20.0, 22.0, 40.0]]), marks.shape, AFFINE, sigma=1.0)
    seen = []

    def flip(ct, memory):
        middle = int(ct[0, 0, 16])  # slice at the patch's centre
        seen.append(middle)
        target = 44 if middle < 40 else 36
        low = target - middle + 16
        probability = np.zeros_like(ct)
        probability[12:20, 12:20, low - 4 : low + 5] = 1
        return probability

    result = walk(marks, start, flip, settings=WalkSettings(32, 2.0, max_steps=5, min_volume_mm3=200.0))
    first = result.vertebrae[0]
    assert not first.converged and first.steps == 6
    # Heat of .3 is reached 1.55 voxels above 40. Centres: 44, 36, 44, 36, 44; their last three: mean 41.33.
    assert seen[:4] == [39, 44, 36, 41]


@pytest.mark.parametrize(("rule", "found"), [("relative", 3), ("absolute", 5)])
def test_end_rules(rule, found):
    """Heat 1, 1, 1, .4, .25, .25 at the six centres, level from half way to half way."""
    heat = Volume(np.zeros((40, 44, 84), np.float32), AFFINE)
    heat.data[16:25, 18:27] = np.repeat([1, 0.4, 0.25], [39, 10, 35])
    settings = WalkSettings(32, 2.0, end_rule=rule, min_volume_mm3=200.0)
    assert len(walk(column(), heat, oracle, settings=settings).vertebrae) == found


def test_specks_do_not_count(heat):
    def with_speck(ct, memory):
        probability = oracle(ct, memory)
        probability[:2, :2, :2] = 1
        return probability

    result = walk(column(), heat, with_speck, settings=SMALL)
    np.testing.assert_array_equal(result.labels.data, column().data)
    first = result.vertebrae[0]
    assert first.probability[~first.mask].max() < 0.5


def test_a_vertebra_found_again_counts_as_nothing(heat):
    result = walk(column(), heat, lambda ct, memory: (ct == 2).astype(np.float32), settings=SMALL)
    assert len(result.vertebrae) == 1


def test_voxels_already_given_are_not_touched(heat):
    def greedy(ct, memory):  # the next vertebra, and three slices of the one above it
        probability = oracle(ct, memory)
        return np.maximum.reduce([np.roll(probability, -i, axis=2) for i in range(7)])

    result = walk(column(), heat, greedy, settings=SMALL)
    expected = column().data.copy()
    for p, r, i in CENTRES.astype(int):
        rank = expected[p, r, i]
        gap = expected[p - 4 : p + 5, r - 5 : r + 6, i - 9 : i - 3]
        gap[gap == 0] = rank
    np.testing.assert_array_equal(result.labels.data, expected)
    second = result.vertebrae[1]
    assert second.probability[~second.mask].max() < 0.5 <= second.probability[second.mask].min()


def test_no_more_than_the_most_vertebrae(heat):
    settings = WalkSettings(32, 2.0, max_vertebrae=2, min_volume_mm3=200.0)
    assert len(walk(column(), heat, oracle, settings=settings).vertebrae) == 2


def test_a_fragment_is_passed_over_without_a_label(heat):
    cut = column()
    cut.data[:, :, :15][cut.data[:, :, :15] == 1] = 0  # 3 of the 7 slices are left: 2376 mm3
    settings = WalkSettings(32, 2.0, min_volume_mm3=2377.0)
    expected = np.maximum(cut.data - 1, 0)
    result = walk(cut, heat, oracle, settings=settings)
    np.testing.assert_array_equal(result.labels.data, expected)
    settings = WalkSettings(32, 2.0, min_volume_mm3=2376.0)
    np.testing.assert_array_equal(walk(cut, heat, oracle, settings=settings).labels.data, cut.data)


def test_a_predictor_of_fragments_ends(heat):
    predict = Recorder(lambda ct, memory: oracle(ct, memory))
    settings = WalkSettings(32, 2.0, min_volume_mm3=5545.0)
    result = walk(column(), heat, predict, settings=settings)
    assert result.vertebrae == () and not result.labels.data.any()
    assert len(predict.asked) <= 2 * (settings.max_fragments + 1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(np.zeros((32, 32, 31)), "shape"), (np.full((32, 32, 32), np.nan), "NaN")],
)
def test_a_broken_predictor_is_named(heat, answer, message):
    with pytest.raises(ValueError, match=message):
        walk(column(), heat, lambda ct, memory: answer, settings=SMALL)


REAL = [
    ("VerSe19", "sub-verse014_seg-vert_msk", "sub-verse014_seg-vb_ctd"),
    ("VerSe19", "sub-verse004_seg-vert_msk", "sub-verse004_seg-subreg_ctd"),
    ("VerSe20", "sub-gl003_dir-ax_seg-vert_msk", "sub-gl003_dir-ax_seg-subreg_ctd"),
    # Cut by the field of view above and below, and labelled by a program: heat from the masks' centres.
    ("other-ct", "chest_seg-vert_msk", None),
    ("other-ct", "abdomen_seg-vert_msk", None),
]


def real_case(
    release: str, mask_name: str, centroids_name: str | None, spacing_mm: float
) -> tuple[Volume, Volume]:
    """Ranks on the working grid, and the heat of the annotated centroids on the heatmap grid."""
    mask_path = next(DATA.rglob(f"{mask_name}*"), None)
    if mask_path is None:
        pytest.skip(f"{release} {mask_name} is not at hand")
    mask = read_mask(mask_path)
    centroids = centroids_of_mask(mask)
    if centroids_name is not None:
        centroids = read_centroids(next(DATA.rglob(f"{centroids_name}*")), mask.grid)
    grid = working_grid(mask.grid, spacing_mm)
    small = resized_grid(grid, (64, 64, 128))
    heat = heat_of(centroids.voxels(small.affine), small.shape, small.affine, sigma=10.0)
    return Volume(ranks_of_mask(resample_labels(mask, grid).data).astype(np.float32), grid.affine), heat


@pytest.mark.parametrize("case", REAL, ids=lambda case: case[1].split("_")[0])
@pytest.mark.parametrize(("spacing_mm", "patch_voxels"), [(1.0, 128), (2.0, 64)])
def test_the_oracle_walks_down_real_spines(case, spacing_mm, patch_voxels):
    ranks, heat = real_case(*case, spacing_mm)
    result = walk(ranks, heat, oracle, settings=WalkSettings(patch_voxels, spacing_mm))
    present, voxels = np.unique(ranks.data[ranks.data > 0], return_counts=True)
    expected = present[voxels * spacing_mm**3 >= 1000.0]
    assert len(result.vertebrae) == len(expected)
    for index, rank in enumerate(expected, start=1):
        found, true = result.labels.data == index, ranks.data == rank
        assert 2 * np.count_nonzero(found & true) / (found.sum() + true.sum()) >= 0.98
