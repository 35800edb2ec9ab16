"""Shares of an epoch: phantoms, scans, images drawn from the masks of both, alone and in the pipelines."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest

from ML_3D_Unet.utils.feeding import EpochPart
from tests.learning import examples
from utils.imaging.centroids import centroids_of_mask, write_centroids
from utils.imaging.crops import box_between
from utils.imaging.nifti import open_memory_map, write_volume
from utils.imaging.volume import Volume
from utils.learning import datasets, epochs, prepared_data, training
from utils.learning.mixture import group_counts, item_groups, mixed_epoch
from utils.preparation.prepared import SIDECAR
from utils.presets import preset_settings
from utils.settings import (
    HeatmapTrainingSettings,
    LabellingTrainingSettings,
    SegmentationTrainingSettings,
    load_settings,
)
from utils.synthetic.appearance import draw_appearance
from utils.synthetic.label_images import label_scan

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
    chosen = {"mixture": SHARES, "walk_shares": (1.0, 0.0, 0.0, 0.0), **small, **changes}
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
    with pytest.raises(ValueError, match="--mixture"):
        group_counts(sizes, shares, 10)


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
    bone = np.asarray(alone["codes"]) > 0
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
        chosen = dataclasses.replace(settings(mixture=(0, 0, 0, 1)), outside=outside, patch_voxels=64)
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
@pytest.mark.parametrize("stage", ["heatmap", "segmentation", "labelling"])
def test_masks_alone_give_no_epoch_where_nothing_is_mixed(data, heatmap_cases, stage, training):
    folder = data.folder
    if stage == "heatmap":
        alone = [
            dataclasses.replace(case, ct_hu=None, codes=np.ones(case.shape, np.uint8))
            for case in heatmap_cases
        ]
        folder = heatmap_cases[0].folder
        make, plain = datasets.heatmap_dataset, heatmap_settings(mixture=None)
    else:
        alone = dataclasses.replace(data, masks_alone=frozenset(data.columns))
        make, plain = datasets.labelling_dataset, preset_settings(LabellingTrainingSettings, "starter")
    if stage == "segmentation":
        make, plain = partial(datasets.segmentation_dataset, spacing_mm=2.0), settings(mixture=None)
    with pytest.raises(ValueError) as caught:
        make(alone, plain, training=training)
    draws = ", or a --mixture that draws images from masks" * (training and stage != "labelling")
    assert str(caught.value) == f"{folder}: expected cases with a CT{draws}, found 3 masks alone."


# ---------------------------------------------------------------- heatmap


@pytest.fixture
def heatmap_cases(tmp_path):
    folder = examples.write_heatmap_stage(tmp_path) / "training"
    put_sidecar(folder, "sub-a", origin="phantom")
    codes = np.zeros(examples.HEATMAP_SHAPE, np.uint8)
    codes[2:5, 2:6, 5:9] = 20
    write_volume(folder / "sub-m_msk.nii", Volume(codes, AFFINE))
    put_sidecar(folder, "sub-m", origin="scan", ct=False)
    grid = open_memory_map(folder / "sub-m_msk.nii").grid
    write_centroids(folder / "sub-m_ctd.json", centroids_of_mask(Volume(codes, AFFINE)), grid)
    cases, bad = prepared_data.read_heatmap_cases(folder)
    assert bad == []
    return cases


def heatmap_settings(**changes):
    small = {"examples_per_epoch": 20, "batch_size": 2, "seed": 3, **changes}
    return preset_settings(HeatmapTrainingSettings, "starter", **small)


def test_the_labelling_network_learns_from_no_mask_alone(data):
    settings = preset_settings(LabellingTrainingSettings, "starter")
    for groups in (epochs.segmentation_groups(data, settings), epochs.segmentation_groups(data, None)):
        (items,) = groups
        assert {data.vertebrae[item].case for item in items} == set(data.columns) - {"sub-m"}
    whole = dataclasses.replace(settings, examples_per_epoch=0)
    groups = epochs.segmentation_groups(data, whole)
    assert epochs.examples_of_groups(groups, whole) == len(groups[0])


def test_heatmap_cases_may_be_masks_alone(heatmap_cases):
    assert [(case.key, case.ct_hu is None, case.is_phantom) for case in heatmap_cases] == [
        ("sub-a", False, True),
        ("sub-b", False, False),
        ("sub-m", True, False),
    ]
    groups = epochs.heatmap_groups(heatmap_cases, heatmap_settings())
    assert [group.tolist() for group in groups] == [[0], [1], [], [5]]


def test_scans_for_the_heatmap_network_show_every_level_equally_often(heatmap_cases):
    def case(*codes):
        mask = np.zeros(examples.HEATMAP_SHAPE, np.uint8)
        mask[2, 2, : len(codes)] = codes
        return dataclasses.replace(heatmap_cases[0], codes=mask)

    # L1 and L2 in four scans, T6 in one, which shows L1 too.
    cases = [case(20, 21), case(20, 21), case(20, 21), case(13, 20), case(21)]
    phantoms, _, drawn, _ = epochs.heatmap_groups(cases, heatmap_settings())
    # Each level four times: L1 from four scans, L2 from four, T6 four times from one.
    np.testing.assert_array_equal(np.bincount(phantoms), [2, 2, 2, 5, 1])
    np.testing.assert_array_equal(drawn, phantoms + len(cases))


def test_a_scan_without_a_mask_counts_once(heatmap_cases):
    alone = [dataclasses.replace(case, codes=None) for case in heatmap_cases[:2]]
    groups = epochs.heatmap_groups(alone, heatmap_settings())
    assert [group.tolist() for group in groups] == [[0], [1], [], []]


def test_cases_come_as_they_are_where_nothing_is_mixed(heatmap_cases):
    assert epochs.heatmap_groups(heatmap_cases, None)[0].tolist() == [0, 1]


def test_heatmap_examples_are_drawn_from_masks(heatmap_cases):
    drawn = heatmap_settings(mixture=(0, 0, 0, 1), crop_least_mm=None)
    made = datasets.heatmap_dataset(heatmap_cases, drawn, training=True)
    first, again, other = (list(made(epoch).as_numpy_iterator()) for epoch in (0, 0, 1))
    assert len(first) == 10 and first[0]["ct_hu"].shape == (2, *examples.HEATMAP_SHAPE)
    np.testing.assert_array_equal(first[3]["ct_hu"], again[3]["ct_hu"])
    assert not np.array_equal(first[3]["ct_hu"], other[3]["ct_hu"])


def test_a_drawn_scan_keeps_its_centroids_in_place(heatmap_cases):
    case = heatmap_cases[-1]
    own_mm = (case.centroids_voxels + 0.5) * case.spacing_mm
    labels, widths = case.label_map(), set()
    for seed in range(6):
        drawn = case.drawn(np.random.default_rng(seed), labels)
        image, first_mm, size_mm = label_scan(labels, draw_appearance(np.random.default_rng(seed)))
        np.testing.assert_array_equal(drawn.ct_hu, image)
        np.testing.assert_allclose(drawn.spacing_mm * drawn.shape, size_mm)
        np.testing.assert_allclose((drawn.centroids_voxels + 0.5) * drawn.spacing_mm + first_mm, own_mm)
        assert (drawn.centroids_voxels > -0.5).all() and (drawn.centroids_voxels < drawn.shape).all()
        widths.add(float(size_mm[0]))
    assert len(widths) >= 3


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
