"""The pipelines: that an example is a function of (seed, epoch, position) however it is met."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from ML_3D_Unet.utils.train import EpochPart
from tests.learning import examples
from utils.learning import datasets, epochs, heatmap, localiser, vertebrae
from utils.settings import HeatmapTrainingSettings, SegmentationTrainingSettings

SETTINGS = SegmentationTrainingSettings(
    patch_voxels=8,
    batch_size=2,
    examples_per_epoch=5,
    seed=3,
    network="unet",
    patch_kinds="paper",
    targets="bits",
    cut_share=0.0,
)
CENTRED = {"network": "residual", "patch_kinds": "centred"}
OCCUPANCIES = dataclasses.replace(SETTINGS, targets="occupancies", cut_share=0.5)
HEATMAP_SETTINGS = HeatmapTrainingSettings(target="spine", batch_size=2, examples_per_epoch=5, seed=3)
LOCALISER_SETTINGS = HeatmapTrainingSettings(
    filters=(2, 3, 4), crop_voxels=(8, 12, 16), batch_size=2, examples_per_epoch=5, seed=3
)


# ---------------------------------------------------------------- pipelines


@pytest.fixture(scope="module")
def stages(data, cases, spines):
    """Every kind: its dataset function for training or not, the items of a pass, and one example alone."""

    def segmentation_alone(item, generator, settings):
        drawn = datasets.segmentation_example(
            data, item, generator, spacing_mm=examples.SPACING_MM, settings=settings
        )
        return {**drawn, **{name: drawn[name].ravel(order="F") for name in ("ct_hu", "codes")}}

    def heatmap_alone(item, generator):
        case = cases[item]
        drawn = heatmap.draw_heatmap_example(
            generator, case.centroids_voxels, shape=examples.HEATMAP_SHAPE, settings=HEATMAP_SETTINGS
        )
        return {"ct_hu": case.ct_hu, **drawn}

    def localiser_alone(item, generator):
        case = spines.cases[item]
        drawn = localiser.draw_localiser_example(
            generator, case.spine, case.shape, settings=LOCALISER_SETTINGS
        )
        block = spines.block(case, drawn.pop("begin"), drawn.pop("end"))
        return {"ct_hu": block.ravel(order="F"), **drawn}

    return {
        "localiser": (
            lambda training: datasets.localiser_dataset(spines, LOCALISER_SETTINGS, training=training),
            np.arange(len(spines)),
            localiser_alone,
        ),
        **{
            name: (
                partial(
                    lambda training, settings: datasets.segmentation_dataset(
                        data, settings, spacing_mm=examples.SPACING_MM, training=training
                    ),
                    settings=settings,
                ),
                epochs.balanced_positions([v.rank for v in data.vertebrae], settings.seed),
                partial(segmentation_alone, settings=settings),
            )
            for name, settings in (("segmentation", SETTINGS), ("occupancies", OCCUPANCIES))
        },
        "heatmap": (
            lambda training: datasets.heatmap_dataset(cases, HEATMAP_SETTINGS, training=training),
            np.arange(len(cases)),
            heatmap_alone,
        ),
    }


def unbatched(dataset):
    """The examples of weight 1, without it."""
    return [
        {name: value[k] for name, value in batch.items() if name != "weight"}
        for batch in dataset.as_numpy_iterator()
        for k in np.flatnonzero(batch["weight"])
    ]


def assert_same(first, second):
    """Compare two examples; a block may be padded further in a batch than alone."""
    assert first.keys() == second.keys()
    for name in first:
        a, b = np.asarray(first[name]), np.asarray(second[name])
        assert a.dtype == b.dtype
        if name in ("ct_hu", "codes") and a.ndim == 1:
            most = max(a.size, b.size)
            a, b = (np.pad(one, (0, most - one.size)) for one in (a, b))
        np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("stage", ["segmentation", "occupancies", "heatmap", "localiser"])
def test_an_example_depends_on_seed_epoch_and_position_alone(stages, stage):
    dataset, items, alone = stages[stage]
    epoch_of = dataset(True)
    later, first = epoch_of(1), epoch_of(0)  # in any order
    found = unbatched(later)
    order = epochs.epoch_order(items, 5, seed=3, epoch=1)
    assert len(found) == 5
    for position, example in enumerate(found):
        generator = np.random.default_rng([3, epochs._EXAMPLE, 1, position])
        assert_same(example, alone(int(order[position]), generator))
    for example, again in zip(found, unbatched(later)):
        assert_same(example, again)
    # From the middle of the epoch, and from another pipeline.
    for example, again in zip(found[2:], unbatched(dataset(True)(1, EpochPart(first_step=1))), strict=True):
        assert_same(example, again)
    differing = [not np.array_equal(a["affine"], b["affine"]) for a, b in zip(found, unbatched(first))]
    assert all(differing)


@pytest.mark.parametrize(
    ("stage", "count"), [("segmentation", 5), ("occupancies", 5), ("heatmap", 2), ("localiser", 2)]
)
def test_validation_is_in_order_and_never_changes(stages, stage, count):
    dataset, _, alone = stages[stage]
    made = [unbatched(dataset(False)(epoch)) for epoch in (0, 7)]
    assert len(made[0]) == len(made[1]) == count
    for position, (example, again) in enumerate(zip(*made)):
        assert_same(example, again)
        assert_same(example, alone(position, None))


def test_all_batches_have_one_length(data):
    batches = datasets.segmentation_dataset(data, SETTINGS, spacing_mm=2.0, training=True)(0)
    weights = [batch["weight"].tolist() for batch in batches.as_numpy_iterator()]
    assert weights == [[1, 1], [1, 1], [1, 0]]
    shapes = {name: (spec.dtype, spec.shape.as_list()) for name, spec in batches.element_spec.items()}
    assert shapes["ct_hu"] == (tf.int16, [2, None]) and shapes["codes"] == (tf.uint8, [2, None])
    assert shapes["affine"] == (tf.float32, [2, 3, 4]) and shapes["weight"] == (tf.float32, [2])


def test_accumulated_batches_are_handed_over_as_one(cases):
    settings = dataclasses.replace(HEATMAP_SETTINGS, accumulate=2)
    for training, weights in ((True, [[1, 1, 1, 1], [1, 0, 0, 0]]), (False, [[1, 1, 0, 0]])):
        batches = datasets.heatmap_dataset(cases, settings, training=training)(0)
        assert [batch["weight"].tolist() for batch in batches.as_numpy_iterator()] == weights
        assert batches.element_spec["ct_hu"].shape.as_list() == [4, *examples.HEATMAP_SHAPE]


def test_filling_is_the_beginning_of_the_epoch(data):
    batches = datasets.segmentation_dataset(data, SETTINGS, spacing_mm=2.0, training=True)(2)
    first, _, last = batches.as_numpy_iterator()
    for name in first.keys() - {"weight"}:
        np.testing.assert_array_equal(last[name][1], first[name][0], err_msg=name)


# ---------------------------------------------------------------- several devices


def test_an_epoch_done_has_no_batches(cases):
    batches = datasets.heatmap_dataset(cases, HEATMAP_SETTINGS, training=True)(0, EpochPart(first_step=3))
    assert list(batches) == []


@pytest.mark.parametrize("stage", ["segmentation", "heatmap", "localiser"])
@pytest.mark.parametrize("training", [True, False])
def test_devices_see_the_examples_of_one_device(stages, stage, training):
    epoch_of = stages[stage][0](training)
    alone = unbatched(epoch_of(1))
    # Each of two pipelines feeds one of two replicas: positions 0, 1 and 4 here, 2 and 3 there.
    here, there = (unbatched(epoch_of(1, EpochPart(0, k, 2, 2))) for k in range(2))
    for found, expected in ((here, alone[:2] + alone[4:]), (there, alone[2:4])):
        assert len(found) == len(expected)
        for example, again in zip(found, expected):
            assert_same(example, again)


# ---------------------------------------------------------------- batches


def test_collate_lays_blocks_flat_in_file_order():
    small = np.arange(6, dtype=np.int16).reshape(1, 2, 3)
    large = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    pair = [{"ct_hu": small, "number": np.float32(1)}, {"ct_hu": large, "number": np.float32(2)}]
    batch = datasets.collate(pair, 9)
    # The first axis is fastest: (0,0,0), (1,0,0), (0,1,0), (1,1,0), (0,0,1), ...
    assert batch["ct_hu"].tolist() == [[0, 3, 1, 4, 2, 5, 0, 0, 0], [0, 4, 2, 6, 1, 5, 3, 7, 0]]
    assert batch["ct_hu"].dtype == np.int16 and batch["number"].tolist() == [1, 2]


def test_collate_stacks():
    pair = [{"ct_hu": np.full((1, 2, 3), k), "vector": np.arange(3) + k} for k in range(2)]
    batch = datasets.collate(pair)
    assert batch["ct_hu"].tolist() == [[[[0] * 3] * 2], [[[1] * 3] * 2]]
    assert batch["vector"].tolist() == [[0, 1, 2], [1, 2, 3]]


# ---------------------------------------------------------------- segmentation examples


def tensors_of(drawn):
    fine = drawn["codes"].shape[0] // drawn["ct_hu"].shape[0]
    batch = datasets.collate([drawn], np.prod(examples.SCAN_SHAPE), fine=fine)
    return {name: tf.constant(value[0]) for name, value in batch.items()}


def of_kind(data, item, shares, seed=0):
    """One example of a kind, its parameters and what the device makes of it."""
    settings = dataclasses.replace(SETTINGS, patch_voxels=24, patch_shares=shares, **CENTRED)
    drawn = datasets.segmentation_example(
        data, item, np.random.default_rng(seed), spacing_mm=2.0, settings=settings
    )
    tensors = tensors_of(drawn)
    x, y = vertebrae.vertebra_example(tensors, patch_voxels=24, spacing_mm=2.0, radius=2)
    return drawn, x.numpy(), y.numpy()


def test_validation_patch_is_the_scan_around_the_target(data):
    # L1 of sub-a: rows 5:11, 4:10, 16:21, centre (7.5, 6.5, 18). A patch of 8 begins 4 before it.
    drawn = datasets.segmentation_example(data, 2, None, spacing_mm=2.0, settings=SETTINGS)
    tensors = tensors_of(drawn)
    x, y = (t.numpy() for t in vertebrae.vertebra_example(tensors, patch_voxels=8, spacing_mm=2.0, radius=2))
    ct, mask, _ = examples.scan((19, 28, 20), 0)
    # Half-voxel positions on P and R: the mean of four voxels.
    part = ct[3:12, 2:11, 14:22].astype(float)
    mean = (part[1:, 1:] + part[:-1, 1:] + part[1:, :-1] + part[:-1, :-1]) / 4
    np.testing.assert_allclose(x[..., 0], (mean + 1024) * 2 / 4095 - 1, atol=1e-5)
    # At a tie the higher index counts.
    np.testing.assert_array_equal(y[..., 0], mask[4:12, 3:11, 14:22] == 20)
    np.testing.assert_array_equal(x[..., 1], np.isin(mask[4:12, 3:11, 14:22], (19, 28)))
    assert x[..., 1].sum() == 0 and y[..., 0].sum() == 180


def test_occupancies_are_the_shares_of_the_samples(data):
    # The same patch: along P and R each of its voxels holds half of two voxels of the scan.
    drawn = datasets.segmentation_example(data, 2, None, spacing_mm=2.0, settings=OCCUPANCIES)
    assert drawn["codes"].shape == tuple(2 * n for n in drawn["ct_hu"].shape)
    x, y = (
        t.numpy()
        for t in vertebrae.vertebra_example(
            tensors_of(drawn), patch_voxels=8, spacing_mm=2.0, radius=2, fine=2, weighs_boundary=False
        )
    )
    _, mask, _ = examples.scan((19, 28, 20), 0)
    part = (mask[3:12, 2:11, 14:22] == 20).astype(float)
    mean = (part[1:, 1:] + part[:-1, 1:] + part[1:, :-1] + part[:-1, :-1]) / 4
    np.testing.assert_allclose(y[..., 0], mean, atol=1e-6)
    assert set(np.unique(y[..., 0])) == {0, 0.25, 0.5, 1} and (y[..., 1] == 1).all()
    assert not x[..., 1].any()


def field_of(data, item, seed, kind="memory", **changes):
    settings = dataclasses.replace(OCCUPANCIES, cut_share=1.0, **changes)
    target = data.target(data.vertebrae[item])
    generator = None if seed is None else np.random.default_rng(seed)
    shape = data.scan(data.vertebrae[item].case)[1].shape
    return vertebrae.draw_field(generator, target, kind, shape, spacing_mm=2.0, settings=settings)


def test_a_field_of_view_cuts_the_target_or_ends_beside_it(data):
    voxels = np.argwhere(data.scan("sub-a")[1].data == 28)
    seen, firsts, cut = [], 0, 0
    for seed in range(200):
        begin, end, is_first = field_of(data, 1, seed)
        assert (begin >= 0).all() and (begin < end).all() and (end <= examples.SCAN_SHAPE).all()
        moved = (begin > 0).sum() + (end < examples.SCAN_SHAPE).sum()
        assert moved <= 1 and is_first == (begin[2] > 0 or (moved == 0 and is_first))
        share = ((voxels >= begin) & (voxels < end)).all(axis=1).mean()
        seen.append(share)
        firsts, cut = firsts + is_first, cut + (share < 1)
    # Planes of five voxels: a plane more or less than is asked for.
    assert min(seen) >= vertebrae.LEAST_SHOWN - 0.2 and 40 < firsts < 80 and 60 < cut < 190


def test_no_field_is_cut_in_validation_or_where_nothing_is_left(data):
    for seed, kind in ((None, "memory"), (1, "nothing left")):
        begin, end, is_first = field_of(data, 1, seed, kind=kind)
        assert not begin.any() and tuple(end) == examples.SCAN_SHAPE and not is_first


def test_where_the_scan_begins_at_the_target_nothing_is_remembered(data):
    settings = dataclasses.replace(OCCUPANCIES, cut_share=1.0, patch_shares=(1, 0, 0), **CENTRED)
    for seed in range(40):
        drawn = datasets.segmentation_example(
            data, 1, np.random.default_rng(seed), spacing_mm=2.0, settings=settings
        )
        full = drawn["last"] + 1
        assert drawn["codes"].shape == tuple(2 * full)
        if not drawn["remembers"]:
            break
    else:
        pytest.fail("no field of view began at the target")
    assert drawn["target_rank"] == 20


def test_t13_is_above_l1_and_below_t12(data):
    assert [v.label for v in data.vertebrae] == [19, 28, 20, 20, 21]
    columns = {case: [v.rank for v in column] for case, column in data.columns.items()}
    assert columns == {"sub-a": [19, 20, 21], "sub-b": [21, 22]}
    ranks = [of_kind(data, item, (1, 0, 0))[0]["target_rank"] for item in range(3)]
    assert ranks == [19, 20, 21]


def test_nothing_left_has_all_in_memory(data):
    found = [of_kind(data, 0, (0, 0, 1), seed) for seed in range(8)]
    assert all(drawn["target_rank"] == vertebrae.NOTHING_LEFT and drawn["remembers"] for drawn, _, _ in found)
    assert not any(y[..., 0].any() for _, _, y in found)
    assert all((y[..., 1] == 1).all() for _, _, y in found)
    assert any(x[..., 1].any() for _, x, _ in found)


def test_emptied_keeps_the_target(data):
    drawn, x, y = of_kind(data, 1, (0, 1, 0))
    assert drawn["target_rank"] == 20 and not drawn["remembers"]
    assert not x[..., 1].any() and y[..., 0].any()


def test_blur_is_handed_over_in_voxels(data):
    sigma = [of_kind(data, 0, (1, 0, 0), seed)[0]["blur_sigma"] for seed in range(30)]
    assert max(sigma) <= 0.75 and min(s for s in sigma if s) >= 0.25  # .5 to 1.5 mm at 2 mm
