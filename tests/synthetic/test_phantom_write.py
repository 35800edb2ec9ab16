"""The phantoms on disk: VerSe's tree, names, orientations; reruns."""

import json
import os
import re
from collections import defaultdict

import nibabel as nib
import numpy as np
import pytest

from utils.synthetic.phantom import write
from utils.synthetic.phantom.make import make_phantom
from utils.synthetic.phantom.record import enter_phantoms
from utils.synthetic.phantom.variants import VARIANTS, choose_spines, variant_of
from utils.synthetic.phantom.write import plan_data_set, plan_variants, write_phantom_data_set
from utils.verse.cases import index_cases, subject_of

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


def die_at_the_second(series, *, data_dir, seed, ranges, step_mm):
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


# Spines looked for their levels


@pytest.mark.parametrize(
    "variants, seed, expected",
    [
        ("half", 3001, [(9, "2019", (21, 25)), (0, "2019", (16, 22)), (6, "2020-ax", (21, 24))]),
        ("rare", 3003, [(22, "2019", (20, 25)), (94, "2019", (16, 20)), (7, "2020-ax", (21, 25))]),
        ("half", 5005, [(4, "2019", (21, 25)), (0, "2019", (16, 20)), (51, "2020-ax", (20, 25))]),
        ("natural", 978, [(0, "2019", (1, 7)), (2, "2019", (7, 10)), (1, "2020-ax", (18, 25))]),
    ],
)
def test_the_spines_of_a_seed_are_those_of_the_shipped_networks(variants, seed, expected):
    chosen = choose_spines(3, seed=seed, variants=variants)
    assert [(spine.subject, spine.style, spine.whole) for spine in chosen] == expected


@pytest.mark.parametrize(
    "codes, expected",
    [
        ((18, 19, 20), "none"),
        ((18, 19, 28, 20), "T13"),
        ((18, 20), "no T12"),
        ((19, 20, 25), "L6"),
        ((19, 28, 20, 25), "T13"),
    ],
)
def test_the_variant_of_a_spine(codes, expected):
    assert variant_of(codes) == expected


def test_how_often_levels_are_rare():
    shares = {name: sum(word != "none" for word in order) / len(order) for name, order in VARIANTS.items()}
    assert shares == {"natural": 0.2, "half": 0.5, "rare": 1.0}


def test_names_tell_seeds_and_variants_apart_and_are_those_of_cases():
    plan = plan_variants((2, 1, 1), seed=3001, variants="half")
    assert [series.key for series in plan] == [f"sub-half3001x00{number}" for number in range(4)]
    assert all(subject_of(series.key) == series.subject_key == series.key for series in plan)
    folders = [series.folder for series in plan]
    assert folders == [
        f"VerSe20/dataset-{end}" for end in ("01training", "01training", "02validation", "03test")
    ]
    assert len({series.subject for series in plan}) == 4


def test_sets_of_several_seeds_lie_beside_natural_ones(tmp_path):
    quick = {"workers": 1, "step_mm": 3.0}
    write_phantom_data_set(tmp_path, (1, 0, 0), seed=0, **quick)
    natural = contents(tmp_path)
    (path,) = write_phantom_data_set(tmp_path, (1, 0, 0), seed=3001, variants="half", **quick)
    write_phantom_data_set(tmp_path, (0, 1, 0), seed=5005, variants="half", **quick)
    found = contents(tmp_path)
    record = next(name for name in natural if name.name == "phantom.json")
    assert all(found[name] == content for name, content in natural.items() if name != record)
    assert json.loads(found[record]) == {
        "seed": 0,
        "variants": {"half": {"3001": [1, 0, 0], "5005": [0, 1, 0]}},
    }
    cases = index_cases(tmp_path)
    splits = {case.key: case.split for case in cases if case.complete}
    assert splits == {
        "sub-half3001x000": "training",
        "sub-half5005x000": "validation",
        "sub-verse004": "training",
    }
    # The scan is that of the subject that was chosen, in the field of view that was drawn.
    expected = make_phantom(3001, subject=9, style="2019", whole=(21, 25), step_mm=3.0)
    image = nib.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj), expected.ct)
    np.testing.assert_allclose(image.affine, expected.affine, atol=1e-5)
    mask = np.rint(nib.load(companions(path)[0]).get_fdata())
    np.testing.assert_array_equal(mask, expected.mask)


def test_spines_looked_for_stay_in_their_splits(tmp_path):
    how = {"seed": 7, "variants": "half", "workers": 1}
    # Counts alone are entered where all that is missing is nothing.
    (tmp_path / "phantom.json").write_text(json.dumps({"variants": {"half": {"7": [3, 0, 0]}}}))
    with pytest.raises(ValueError, match="stay in their splits") as caught:
        write_phantom_data_set(tmp_path, (2, 1, 0), **how)
    assert str(tmp_path) in str(caught.value) and "(3, 0, 0)" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["phantom.json"]


@pytest.mark.parametrize(
    "known, counts, expected",
    [((2, 0, 0), (4, 0, 0), [4, 0, 0]), ((2, 0, 0), (2, 3, 0), [2, 3, 0]), ((2, 1, 0), (2, 0, 0), [2, 1, 0])],
)
def test_the_last_split_may_grow(tmp_path, known, counts, expected):
    record = tmp_path / "phantom.json"
    record.write_text(json.dumps({"seed": 0, "variants": {"rare": {"7": known}}}))
    enter_phantoms(tmp_path, counts, seed=7, variants="rare")
    assert json.loads(record.read_text()) == {"seed": 0, "variants": {"rare": {"7": expected}}}
