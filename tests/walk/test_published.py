"""The published walk, on small columns with exact answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest

from tests.walk.column import AFFINE, CENTRES, SHAPE, column, heat_of, oracle
from utils.imaging.grids import resized_grid
from utils.imaging.volume import Volume
from utils.walk.published import walk_published
from utils.walk.records import WalkSettings

PUBLISHED = WalkSettings(32, 2.0, min_volume_mm3=200.0)


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
    result = walk_published(column(), heat, oracle, settings=PUBLISHED)
    np.testing.assert_array_equal(result.labels.data, column().data)
    np.testing.assert_array_equal(result.labels.affine, AFFINE)
    np.testing.assert_allclose([v.centre for v in result.vertebrae], CENTRES)
    assert all(v.converged for v in result.vertebrae)
    # The patch of 32 voxels holds each next vertebra whole, so every centre is exact from the first look.
    assert [v.steps for v in result.vertebrae] == [3] * 6
    first = result.vertebrae[0]
    np.testing.assert_array_equal(first.begin, [20 - 4 - 2, 22 - 5 - 2, 14 - 3 - 2])
    assert first.mask.shape == first.probability.shape == (13, 15, 11)
    assert first.mask.sum() == 9 * 11 * 7


def test_an_identical_patch_is_never_predicted_twice_and_every_step_is_told(heat):
    predict = Recorder(oracle)
    result = walk_published(column(), heat, predict, settings=PUBLISHED)
    assert len(set(predict.asked)) == len(predict.asked) == result.calls
    # The first look at each and the one at its centre; the third is a repeat. One below the last.
    assert result.calls == 2 * 6 + 1 and sum(v.calls for v in result.vertebrae) == 12
    accepted = [step for step in result.trace if step.words == "accepted"]
    np.testing.assert_allclose([step.centre for step in accepted], CENTRES)
    assert [step.call for step in result.trace if step.call] == list(range(1, 14))
    assert json.loads(json.dumps(result.trace[0].as_json()))["call"] == 1


def test_a_heatmap_on_a_coarse_grid_leads_the_same_way():
    grid = resized_grid(column().grid, (10, 11, 21))
    coarse = heat_of((CENTRES - 1.5) / 4.0, grid.shape, grid.affine, sigma=1.5)
    result = walk_published(column(), coarse, oracle, settings=PUBLISHED)
    np.testing.assert_array_equal(result.labels.data, column().data)


def test_a_cold_heatmap_gives_no_vertebra(heat):
    cold = Volume(np.full_like(heat.data, 0.29), heat.affine)
    predict = Recorder(oracle)
    result = walk_published(column(), cold, predict, settings=PUBLISHED)
    assert result.vertebrae == () and not result.labels.data.any() and not predict.asked


def test_an_empty_predictor_steps_down_and_ends(heat):
    predict = Recorder(lambda ct, memory: np.zeros_like(ct))
    assert walk_published(column(), heat, predict, settings=PUBLISHED).vertebrae == ()
    # Heat of .3 from slice 5 to slice 73, a quarter of the patch is 8 voxels: no more than the limit.
    assert len(predict.asked) == PUBLISHED.max_steps_down + 1


def test_a_gap_is_stepped_over(heat):
    gap = column()
    gap.data[gap.data < 4] = 0
    result = walk_published(gap, heat, oracle, settings=PUBLISHED)
    np.testing.assert_array_equal(np.unique(gap.data[result.labels.data > 0]), [4, 5, 6])


def test_it_ends_after_the_first_vertebra_with_little_heat():
    """Heat 1, 1, 1, .4, .25, .25 at the six centres, level from half way to half way."""
    heat = Volume(np.zeros(SHAPE, np.float32), AFFINE)
    heat.data[16:25, 18:27] = np.repeat([1, 0.4, 0.25], [39, 10, 35])
    found = walk_published(column(), heat, oracle, settings=PUBLISHED).vertebrae
    np.testing.assert_allclose([vertebra.heat for vertebra in found], [1, 1, 1, 0.4, 0.25])


def test_a_drifting_predictor_ends_without_rest(heat):
    # Always 4 voxels (8 mm) below the patch's centre: no three centres are ever closer than 16 mm.
    predict = Recorder(lambda ct, memory: block_at((12, 12, 16)))
    result = walk_published(column(), heat, predict, settings=PUBLISHED)
    assert result.vertebrae and not any(v.converged for v in result.vertebrae)
    assert result.vertebrae[0].steps == PUBLISHED.max_steps + 1
    assert result.calls <= PUBLISHED.max_calls


def test_an_alternating_predictor_ends_at_the_mean(heat):
    asked = []

    def alternate(ct, memory):
        asked.append(1)
        return block_at((12, 12, 6 if len(asked) % 2 else 18))

    result = walk_published(column(), heat, alternate, settings=PUBLISHED)
    looks = [step for step in result.trace if step.origin is not None][: PUBLISHED.max_steps + 1]
    assert [step.centre[2] for step in looks[-4:-1]] == [8.5, 3.0, 8.5]
    # The last patch has their mean, slice 6.67, in its middle, and shows what the first one showed.
    assert looks[-1].origin[2] == looks[0].origin[2] == -9 == round(20 / 3 - 16)
    first = result.vertebrae[0]
    assert first.centre[2] == looks[-1].centre[2] == 2.0
    assert not first.converged and first.steps == PUBLISHED.max_steps + 1


def test_specks_do_not_count(heat):
    def with_speck(ct, memory):
        probability = oracle(ct, memory)
        probability[:2, :2, :2] = 1
        return probability

    result = walk_published(column(), heat, with_speck, settings=PUBLISHED)
    np.testing.assert_array_equal(result.labels.data, column().data)
    first = result.vertebrae[0]
    assert first.probability[~first.mask].max() < 0.5


def test_a_vertebra_found_again_counts_as_nothing(heat):
    def second(ct, memory):
        return (ct == 2).astype(np.float32)

    assert len(walk_published(column(), heat, second, settings=PUBLISHED).vertebrae) == 1


def test_voxels_already_given_are_not_touched(heat):
    def greedy(ct, memory):  # the next vertebra, and three slices of the one above it
        probability = oracle(ct, memory)
        return np.maximum.reduce([np.roll(probability, -i, axis=2) for i in range(7)])

    result = walk_published(column(), heat, greedy, settings=PUBLISHED)
    assert len(result.vertebrae) == 6
    for number, vertebra in enumerate(result.vertebrae, start=1):
        assert vertebra.mask.sum() == np.count_nonzero(result.labels.data == number)
        assert vertebra.probability[~vertebra.mask].max() < 0.5 <= vertebra.probability[vertebra.mask].min()


def test_no_more_than_the_most_vertebrae(heat):
    settings = dataclasses.replace(PUBLISHED, max_vertebrae=2)
    assert len(walk_published(column(), heat, oracle, settings=settings).vertebrae) == 2


def test_a_fragment_is_passed_over_without_a_label(heat):
    cut = column()
    cut.data[:, :, :15][cut.data[:, :, :15] == 1] = 0  # 3 of the 7 slices are left: 2376 mm3
    settings = dataclasses.replace(PUBLISHED, min_volume_mm3=2377.0)
    result = walk_published(cut, heat, oracle, settings=settings)
    np.testing.assert_array_equal(result.labels.data, np.maximum(cut.data - 1, 0))
    settings = dataclasses.replace(PUBLISHED, min_volume_mm3=2376.0)
    result = walk_published(cut, heat, oracle, settings=settings)
    np.testing.assert_array_equal(result.labels.data, cut.data)


def test_a_predictor_of_fragments_ends(heat):
    predict = Recorder(oracle)
    settings = dataclasses.replace(PUBLISHED, min_volume_mm3=5545.0)
    result = walk_published(column(), heat, predict, settings=settings)
    assert result.vertebrae == () and not result.labels.data.any()
    assert len(predict.asked) <= 2 * (settings.max_fragments + 1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(np.zeros((32, 32, 31)), "shape"), (np.full((32, 32, 32), np.nan), "NaN")],
)
def test_a_broken_predictor_is_named(heat, answer, message):
    with pytest.raises(ValueError, match=message):
        walk_published(column(), heat, lambda ct, memory: answer, settings=PUBLISHED)
