"""The phantoms on disk: VerSe's tree, names, orientations; reruns."""

import json
import os
import re
from collections import defaultdict

import nibabel as nib
import numpy as np
import pytest

from utils.synthetic.phantom import plan_data_set, write, write_phantom_data_set

COUNTS = (4, 1, 1)
CT_NAMES = re.compile(
    r"VerSe19/dataset-verse19(training|validation|test)/rawdata/(sub-verse\d{3})/\2_ct\.nii\.gz"
    r"|VerSe20/dataset-0(1training|2validation|3test)/rawdata/(sub-verse\d{3})"
    r"/\4(_dir-(ax|sag)|_split-verse\d{3})_ct\.nii\.gz"
)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("phantoms")
    return data_dir, write_phantom_data_set(data_dir, COUNTS, seed=0, workers=1, step_mm=2.0)


def companions(ct_path):
    """Mask and centroid file of a CT."""
    folder = str(ct_path.parent).replace("rawdata", "derivatives")
    key = ct_path.name.removesuffix("_ct.nii.gz")
    (mask,) = ct_path.parents[2].glob(f"derivatives/{ct_path.parent.name}/{key}_seg-vert_msk.nii.gz")
    (centroids,) = ct_path.parents[2].glob(f"derivatives/{ct_path.parent.name}/{key}_seg-*_ctd.json")
    assert str(mask.parent) == str(centroids.parent) == folder
    return mask, centroids


def contents(data_dir):
    """Every file's bytes; equal bytes are equal arrays."""
    return {p.relative_to(data_dir): p.read_bytes() for p in data_dir.rglob("*") if p.is_file()}


def test_names_and_counts_are_those_of_verse(data_set):
    data_dir, written = data_set
    assert sorted(data_dir.rglob("*_ct.nii.gz")) == sorted(written)
    splits = [path.parents[2].name for path in written]
    counts = [sum(word in split for split in splits) for word in ("training", "validation", "test")]
    assert counts == list(COUNTS)
    for path in written:
        assert CT_NAMES.fullmatch(path.relative_to(data_dir).as_posix())
        _, centroids = companions(path)
        assert re.search(r"_seg-(vb|subreg)_ctd\.json$", centroids.name)
    files = [path for path in data_dir.rglob("*") if path.is_file()]
    assert len(files) == 3 * sum(COUNTS) + 1  # and the record of the seed


def test_every_split_alternates_between_the_two_releases():
    folders = [series.folder for series in plan_data_set((6, 4, 3))]
    assert ["VerSe19" in folder for folder in folders] == [True, False] * 5 + [True, False, True]


def test_no_subject_is_in_two_splits_and_some_have_several_series():
    plan = plan_data_set((24, 10, 9))
    assert len(plan) == 43
    assert len({series.key for series in plan}) == 43
    splits, series_of = defaultdict(set), defaultdict(list)
    for series in plan:
        split = re.search("training|validation|test", series.folder).group()
        splits[series.subject_key].add(split)
        splits[series.subject].add(split)
        series_of[series.subject_key].append((series.subject, series.series))
    assert all(len(found) == 1 for found in splits.values())
    several = {key: found for key, found in series_of.items() if len(found) > 1}
    assert len(several) >= 3
    for key, found in several.items():
        assert re.fullmatch(r"sub-verse4\d\d", key)
        assert len({subject for subject, _ in found}) == 1
        assert len({series for _, series in found}) == len(found)


def test_a_larger_plan_begins_with_the_smaller_one():
    small, large = plan_data_set((5, 2, 1)), plan_data_set((9, 3, 4))
    assert set(small) <= set(large)


def test_ct_and_mask_share_shape_and_affine_and_centroids_name_the_labels(data_set):
    for path in data_set[1]:
        mask_path, centroid_path = companions(path)
        ct, mask = nib.load(path), nib.load(mask_path)
        assert ct.shape == mask.shape
        np.testing.assert_allclose(ct.affine, mask.affine, atol=1e-4)
        assert ct.get_data_dtype() == np.int16
        labels = np.rint(mask.get_fdata()).astype(int)
        header, *records = json.loads(centroid_path.read_text())
        assert sorted({record["label"] for record in records}) == sorted(set(np.unique(labels)) - {0})
        check_points(labels, mask.affine, header["direction"], records)


def check_points(labels, affine, direction, records):
    """Turn the whole mask into the declared orientation, as a reader would, and look the points up."""
    change = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(direction)
    )
    turned = nib.orientations.apply_orientation(labels, change)
    for record in records:
        index = tuple(round(record[axis]) for axis in "XYZ")
        assert turned[index] == record["label"] or record["label"] == 1


def test_the_first_release_is_pir_at_a_millimetre_and_the_second_native(data_set):
    for path in data_set[1]:
        image = nib.load(path)
        axes, spacing = "".join(nib.aff2axcodes(image.affine)), np.array(image.header.get_zooms())
        if "VerSe19" in str(path):
            assert axes == "PIR"
            np.testing.assert_allclose(spacing[:2], 1.0)
        else:
            assert len(axes) == len(set(axes)) == 3
            assert 0.3 <= spacing.min() <= spacing.max() <= 3.3


def test_a_rerun_keeps_what_is_complete_and_makes_the_rest_again(data_set):
    data_dir, written = data_set
    before = contents(data_dir)
    written[0].unlink()
    companions(written[4])[1].unlink()
    kept = [p for n, path in enumerate(written) if n not in (0, 4) for p in (path, *companions(path))]
    times = {path: path.stat().st_mtime_ns for path in kept}
    assert write_phantom_data_set(data_dir, COUNTS, seed=0, workers=1, step_mm=2.0) == written
    assert {path: path.stat().st_mtime_ns for path in kept} == times
    assert contents(data_dir) == before


def test_processes_write_what_one_process_writes(data_set, tmp_path):
    write_phantom_data_set(tmp_path, (1, 1, 0), seed=0, workers=2, step_mm=2.0)
    expected = contents(data_set[0])
    found = contents(tmp_path)
    assert len(found) == 7
    assert all(expected[name] == content for name, content in found.items())


def die_at_the_second(series, *, data_dir, seed, step_mm):
    if series.subject == 1:
        os._exit(1)
    (data_dir / series.key).write_text(" ".join(os.environ[name] for name in write._THREAD_SETTINGS))


def test_a_killed_process_costs_its_own_series_alone(tmp_path, monkeypatch):
    """What the other processes write is what they may use: one thread a library."""
    monkeypatch.setattr(write, "_write_series", die_at_the_second)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    first, second, third = plan_data_set((3, 0, 0))
    ct = re.escape(str(second.paths(tmp_path, 0)["ct"]))
    with pytest.raises(
        write.UnwrittenPhantoms, match=f"^{ct}: expected to be written, found a process that was"
    ):
        write_phantom_data_set(tmp_path, (3, 0, 0), seed=0, workers=2)
    assert not (tmp_path / second.key).exists()
    assert [(tmp_path / series.key).read_text() for series in (first, third)] == ["1 1 1 1"] * 2
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_a_folder_of_another_seed_is_refused(data_set):
    with pytest.raises(ValueError, match="expected phantoms of seed 1, found those of seed 0"):
        write_phantom_data_set(data_set[0], COUNTS, seed=1)


@pytest.mark.parametrize("text", ["", "{}", "[]", "{"])
def test_a_damaged_record_of_the_seed_is_named(tmp_path, text):
    record = tmp_path / "phantom.json"
    record.write_text(text)
    with pytest.raises(ValueError, match="expected the seed") as caught:
        write_phantom_data_set(tmp_path, (1, 0, 0), seed=0)
    assert str(caught.value).startswith(f"{record}: ")
    assert list(tmp_path.iterdir()) == [record]


def test_a_negative_count_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"three counts of 0 or more.*\(1, -1, 0\)"):
        write_phantom_data_set(tmp_path, (1, -1, 0), seed=0)
