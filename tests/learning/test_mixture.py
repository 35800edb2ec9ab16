"""Shares of an epoch: phantoms, scans, images drawn from the masks of both, alone and in the pipelines."""

import dataclasses
import json

import numpy as np
import pytest

from ML_3D_Unet.utils.feeding import EpochPart
from tests.learning import examples
from utils.imaging.crops import box_between
from utils.imaging.nifti import write_volume
from utils.imaging.volume import Volume
from utils.learning import datasets, epochs, prepared_data, training
from utils.learning.mixture import group_counts, item_groups, mixed_epoch
from utils.preparation.prepared import SIDECAR
from utils.presets import preset_settings
from utils.settings import SegmentationTrainingSettings, load_settings

SHARES = (0.3, 0.25, 0.1, 0.35)
AFFINE = examples.AFFINE


def put_sidecar(folder, key, *, origin, ct=True):
    outputs = {f"{key}_{kind}.nii": 0 for kind in (("ct", "msk") if ct else ("msk",))}
    content = {"made_with": {}, "sources": {}, "outputs": outputs, "origin": origin}
    (folder / f"{key}{SIDECAR}").write_text(json.dumps(content))


@pytest.fixture
def work(tmp_path):
    """Of the training cases sub-a is a phantom, sub-b a scan, and sub-m a mask alone (L3, L4)."""
    folder = examples.write_segmentation_stage(tmp_path) / "training"
    put_sidecar(folder, "sub-a", origin="phantom")
    put_sidecar(folder, "sub-b", origin="scan")
    _, mask, rows = examples.scan((22, 23))
    write_volume(folder / "sub-m_msk.nii", Volume(mask, AFFINE))
    write_volume(folder / "sub-m_fine.nii", examples.fine_mask(mask))
    put_sidecar(folder, "sub-m", origin="scan", ct=False)
    known = [
        {"case": case, **row}
        for case, codes in examples.CASES["training"].items()
        for row in examples.scan(codes)[2]
    ]
    examples.write_table(folder / "vertebrae.csv", [*known, *({"case": "sub-m", **row} for row in rows)])
    return tmp_path


@pytest.fixture
def data(work):
    folder = work / "segmentation" / "2mm" / "training"
    return prepared_data.read_segmentation_data(folder).without_bad_cases()[0]


def settings(**changes):
    """One kind of patch, so that the vertebra shown is the one that was drawn."""
    small = {"patch_voxels": 16, "examples_per_epoch": 40, "batch_size": 4, "shift_mm": 8.0, "seed": 3}
    chosen = {"mixture": SHARES, "patch_shares": (1.0, 0.0, 0.0), **small, **changes}
    return preset_settings(SegmentationTrainingSettings, "starter", **chosen)


def batches(data, changed, epoch=0):
    made = datasets.segmentation_dataset(data, changed, spacing_mm=examples.SPACING_MM, training=True)
    return list(made(epoch).as_numpy_iterator())


# ---------------------------------------------------------------- alone


def test_items_are_sorted_into_four_groups():
    groups = item_groups([True, False, True, False], [True, True, False, False], [True, True, True, False])
    assert [group.tolist() for group in groups] == [[0], [1], [4, 6], [5]]


@pytest.mark.parametrize(
    ("sizes", "shares", "count", "expected"),
    [
        ((5, 5, 5, 5), SHARES, 40, [12, 10, 4, 14]),
        ((5, 5, 5, 5), (1, 1, 1, 0), 10, [4, 3, 3, 0]),
        ((5, 0, 5, 5), (0.3, 0.5, 0.1, 0.1), 10, [6, 0, 2, 2]),
        ((5, 5, 5, 5), (1, 0, 0, 0), 7, [7, 0, 0, 0]),
    ],
)
def test_counts_worked_out_by_hand(sizes, shares, count, expected):
    assert group_counts(sizes, shares, count) == expected


@pytest.mark.parametrize(
    ("sizes", "shares"), [((1, 1, 1, 1), (1, -1, 1, 1)), ((0, 1, 0, 0), (1, 0, 0, 0)), ((1, 1, 1, 1), (1, 1))]
)
def test_shares_that_give_no_epoch_are_refused(sizes, shares):
    for option in ("--mixture", "--origins"):
        with pytest.raises(ValueError, match=option):
            group_counts(sizes, shares, 10, option=option)


def test_groups_go_on_from_epoch_to_epoch():
    groups = [np.arange(3), np.arange(10, 14)]
    orders = [mixed_epoch(groups, [2, 3], epochs.epoch_order, seed=0, epoch=epoch) for epoch in range(12)]
    assert all(np.sum(epoch < 10) == 2 and len(epoch) == 5 for epoch in orders)
    seen = np.concatenate(orders)
    # 24 and 36 examples: every item of a group equally often.
    np.testing.assert_array_equal(np.bincount(seen)[[0, 1, 2, 10, 11, 12, 13]], [8, 8, 8, 9, 9, 9, 9])
    assert len({tuple(epoch < 10) for epoch in orders}) > 1


# ---------------------------------------------------------------- segmentation


def test_origins_and_masks_alone_are_read(data):
    assert (data.phantoms, data.masks_alone) == ({"sub-a"}, {"sub-m"})
    assert data.scan("sub-m")[0] is None and data.scan("sub-m")[1].shape == examples.SCAN_SHAPE


def test_an_epoch_has_the_shares_that_were_asked_for(data):
    groups = epochs.segmentation_groups(data, settings())
    # Vertebrae 0-2 of sub-a, 3-4 of sub-b, 5-6 of sub-m; drawn ones count from 7.
    assert [sorted(set(group.tolist())) for group in groups] == [
        [0, 1, 2],
        [3, 4],
        [7, 8, 9],
        [10, 11, 12, 13],
    ]
    made = datasets.segmentation_dataset(data, settings(), spacing_mm=2.0, training=True)
    items = epochs.items_of_epoch(groups, settings(), 0)
    kinds = [sum(item in group for item in items) for group in groups]
    assert kinds == [12, 10, 4, 14]
    assert sum(batch["weight"].sum() for batch in made(0).as_numpy_iterator()) == 40


def test_drawn_cts_are_new_in_every_epoch_and_the_same_in_each(data):
    drawn = settings(mixture=(0, 0, 0, 1))
    first, again, other = batches(data, drawn), batches(data, drawn), batches(data, drawn, epoch=1)
    for one, two in zip(first, again):
        np.testing.assert_array_equal(one["ct_hu"], two["ct_hu"])
    assert not np.array_equal(first[0]["ct_hu"][0, :500], other[0]["ct_hu"][0, :500])


def test_the_labels_beside_a_drawn_ct_are_those_of_the_mask(data):
    drawn, plain = settings(mixture=(0, 0, 0, 1)), settings()
    item = 5 + len(data.vertebrae)
    generators = [np.random.default_rng(4) for _ in range(2)]
    read, made = (
        datasets.segmentation_example(data, one, generator, spacing_mm=2.0, settings=chosen)
        for one, generator, chosen in ((3, generators[0], plain), (3 + 7, generators[1], drawn))
    )
    np.testing.assert_array_equal(read["codes"], made["codes"])
    np.testing.assert_array_equal(read["affine"], made["affine"])
    assert read["ct_hu"].shape == made["ct_hu"].shape and not np.array_equal(read["ct_hu"], made["ct_hu"])
    alone = datasets.segmentation_example(data, item, generators[0], spacing_mm=2.0, settings=drawn)
    # Bone is brighter than what lies around it.
    bone = np.asarray(alone["codes"])[::2, ::2, ::2] > 0
    assert np.median(alone["ct_hu"][bone]) > np.median(alone["ct_hu"][~bone])


def test_discs_of_two_thirds_of_the_phantoms_are_drawn_thinner(data):
    # In the order of their names; vertebrae of the masks are 4 voxels long, 2 apart.
    all_phantoms = dataclasses.replace(data, phantoms=frozenset(data.columns), _found=prepared_data.Found())
    discs = []
    for case in sorted(all_phantoms.phantoms):
        codes = np.asarray(all_phantoms.label_map(case, examples.SPACING_MM).codes)
        discs.append(np.count_nonzero(codes) - np.count_nonzero(all_phantoms.scan(case)[1].data))
    assert discs[0] == 0 and discs[1] > 0 and discs[2] > 0
    np.testing.assert_array_equal(data.label_map("sub-b", 2.0).codes, data.scan("sub-b")[1].data)


def test_a_drawn_phantom_has_the_labels_that_it_was_drawn_from(data):
    narrow = dataclasses.replace(
        data, phantoms=frozenset({"sub-", *data.phantoms}), _found=prepared_data.Found()
    )
    assert not np.array_equal(narrow.label_map("sub-a", 2.0).codes, narrow.scan("sub-a")[1].data)
    made = datasets.segmentation_example(
        narrow, 1 + 7, np.random.default_rng(4), spacing_mm=2.0, settings=settings(mixture=(0, 0, 1, 0))
    )
    plain = datasets.segmentation_example(
        narrow, 1, np.random.default_rng(4), spacing_mm=2.0, settings=settings()
    )
    grown = np.asarray(made["codes"]) != np.asarray(plain["codes"])
    assert grown.any() and not np.asarray(plain["codes"])[grown].any()


def test_a_drawn_scan_ends_with_its_field_of_view_where_air_lies_outside(data):
    # The same draw twice: what the field of view shows is alike, but for noise and fields of their own size.
    item, looks = 3 + 7, []
    for outside in ("edge", "air"):
        whole = {"patch_voxels": 64, "targets": "bits", "cut_share": 0.0}
        chosen = dataclasses.replace(settings(mixture=(0, 0, 0, 1)), outside=outside, **whole)
        generator = np.random.default_rng(1)
        looks.append(datasets.segmentation_example(data, item, generator, spacing_mm=2.0, settings=chosen))
    whole, shown = looks
    assert whole["codes"].shape == examples.SCAN_SHAPE
    assert shown["codes"].shape == shown["ct_hu"].shape == tuple(shown["last"] + 1)
    size = np.array(shown["codes"].shape)
    assert (size <= examples.SCAN_SHAPE).all() and (size < examples.SCAN_SHAPE).any()
    # All labels are in it, at the place that the affine says.
    begin = np.rint(whole["affine"][:, 3] - shown["affine"][:, 3]).astype(int)
    np.testing.assert_array_equal(whole["codes"][box_between(begin, begin + size)], shown["codes"])
    assert np.count_nonzero(whole["codes"]) == np.count_nonzero(shown["codes"])


def test_masks_alone_stay_out_where_nothing_is_mixed(data):
    plain = settings(mixture=None, examples_per_epoch=0)
    assert set(epochs.segmentation_groups(data, plain)[0]) == {0, 1, 2, 3, 4}
    assert set(epochs.segmentation_groups(data, None)[0]) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("training", [True, False])
def test_masks_alone_give_no_epoch_where_nothing_is_mixed(data, training):
    alone = dataclasses.replace(data, masks_alone=frozenset(data.columns))
    with pytest.raises(ValueError) as caught:
        datasets.segmentation_dataset(alone, settings(mixture=None), spacing_mm=2.0, training=training)
    draws = ", or a --mixture that draws images from masks" * training
    assert str(caught.value) == f"{data.folder}: expected cases with a CT{draws}, found 3 masks alone."


# ---------------------------------------------------------------- training


def test_a_resume_within_an_epoch_finds_the_rest_of_its_mixture(data):
    made = datasets.segmentation_dataset(data, settings(), spacing_mm=2.0, training=True)
    whole = list(made(1).as_numpy_iterator())
    rest = list(made(1, EpochPart(first_step=7)).as_numpy_iterator())
    assert (len(whole), len(rest)) == (10, 3)
    for expected, found in zip(whole[7:], rest):
        for name in expected:
            np.testing.assert_array_equal(expected[name], found[name])


def test_a_mixture_is_trained_on(work):
    # The prepared data are of the preset small; the mixture is what is tried.
    changed = examples.training_settings(
        work, mixture=SHARES, moving_average=0.9, epochs=1, validate_every=1, tensorboard=False
    )
    assert training.train_segmentation(changed) == 0
    (row,) = examples.history_of(work / "models" / "segmentation")
    assert np.isfinite(float(row["loss"])) and np.isfinite(float(row["val_loss"]))
    assert tuple(load_settings(work / "models" / "segmentation")["mixture"]) == SHARES
