import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.imaging.examples import DATA, NO_DATA, real_tree, save, two_vertebrae, write_case
from utils.imaging.centroids import read_centroids
from utils.imaging.grids import working_grid
from utils.imaging.nifti import open_memory_map, read_ct, write_volume
from utils.imaging.resampling import heatmap_ct, resample_labels, working_ct
from utils.preparation import prepare, working_case
from utils.preparation.own_cases import add_own_case
from utils.preparation.prepare import prepare_heatmap, prepare_segmentation
from utils.preparation.prepared import is_mask_alone, origin_of, spacing_folder
from utils.preparation.spine_case import read_spine
from utils.preparation.working_case import VERTEBRA_COLUMNS
from utils.settings import DataSettings, HeatmapPreparationSettings, SegmentationPreparationSettings
from utils.synthetic.phantom.record import PHANTOM_RECORD
from utils.verse.cases import Case

ROOT = Path(__file__).resolve().parents[2]


def heatmap(tmp_path, **changes):
    values = {"data_dir": tmp_path / "data", "work_dir": tmp_path / "work", "workers": 1, **changes}
    published = {"target": "spine", "spacing_mm": 1.0, "heatmap_shape": (16, 16, 32)}
    return HeatmapPreparationSettings(**{**published, **values})


def segmentation(tmp_path, **changes):
    values = {"data_dir": tmp_path / "data", "work_dir": tmp_path / "work", "workers": 1, **changes}
    return SegmentationPreparationSettings(**values)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder; of the settings, what two folders have in common."""
    found = {name: (folder / name).read_bytes() for name in names(folder)}
    for name in [name for name in found if name.endswith("/settings.json")]:
        settings = json.loads(found[name])
        found[name] = {key: value for key, value in settings.items() if key not in ("work_dir", "data_dir")}
    return found


def age(*paths: Path, seconds=100):
    """Make sources older (or, with a negative number, newer) than what was prepared from them."""
    for path in paths:
        changed = path.stat().st_mtime - seconds
        os.utime(path, (changed, changed))


# What is written


#: Ends of the names of what is left of a case of the segmentation stage.
WHOLE = ("ct.nii", "fine.nii", "msk.nii", "prepared.json", "vertebrae.csv")


def test_segmentation_files_hold_the_working_grid(tmp_path):
    write_case(tmp_path / "data", "sub-a01")
    assert prepare_segmentation(segmentation(tmp_path)) == 0
    ct, mask = two_vertebrae()
    folder = tmp_path / "work" / "segmentation" / "1mm" / "training"
    found = open_memory_map(folder / "sub-a01_ct.nii")
    grid = working_grid(ct.grid, 1.0)
    assert found.data.dtype == np.int16
    assert nibabel.aff2axcodes(found.affine) == ("P", "R", "I")
    np.testing.assert_allclose(found.affine, grid.affine, atol=1e-5)
    np.testing.assert_array_equal(found.data, np.rint(working_ct(ct, 1.0).data))
    labels = open_memory_map(folder / "sub-a01_msk.nii")
    fine = open_memory_map(folder / "sub-a01_fine.nii")
    assert labels.data.dtype == fine.data.dtype == np.uint8
    np.testing.assert_allclose(fine.spacing_mm, 0.5)
    assert fine.shape == tuple(2 * n for n in labels.shape)
    np.testing.assert_array_equal(labels.data, resample_labels(mask, grid).data)
    # Eight samples a voxel: the first lies a quarter of a voxel before its middle.
    quarter = labels.affine @ (-0.25, -0.25, -0.25, 1)
    np.testing.assert_allclose(fine.affine[:, 3], quarter, atol=1e-5)
    assert names(tmp_path / "work" / "segmentation" / "1mm") == [
        "settings.json",
        *(f"training/sub-a01_{end}" for end in WHOLE),
        "training/vertebrae.csv",
    ]


def test_vertebra_rows_worked_out_by_hand(tmp_path):
    # Blocks of 6 x 6 voxels of 2 mm at (R 6-11, A 4-9), T13 at S 16-21, L1 at S 0-7, in 20 x 24 x 28 voxels
    # are 12 x 12 voxels of 1 mm: P counts from the front end of A (48 - 20 = 28 to 40), I from the top.
    # At a corner the indicator is .75 cubed, under one half, so each block loses its corners inside the scan.
    write_case(tmp_path / "data", "sub-a01")
    assert prepare_segmentation(segmentation(tmp_path)) == 0
    t13, l1 = table(tmp_path / "work" / "segmentation" / "1mm" / "training" / "vertebrae.csv")
    sides = {
        "begin_p": "28",
        "end_p": "40",
        "begin_r": "12",
        "end_r": "24",
        "centre_p": "33.500",
        "centre_r": "17.500",
    }
    assert t13 == {
        **{"case": "sub-a01", "label": "28", "rank": "20", "voxels": str(12**3 - 8), "touches_border": "0"},
        **sides,
        **{"begin_i": "12", "end_i": "24", "centre_i": "17.500"},
    }
    assert l1 == {
        **{
            "case": "sub-a01",
            "label": "20",
            "rank": "21",
            "voxels": str(12 * 12 * 16 - 4),
            "touches_border": "1",
        },
        **sides,
        **{"begin_i": "40", "end_i": "56", "centre_i": f"{(2304 * 47.5 - 4 * 40) / 2300:.3f}"},
    }
    assert tuple(t13) == VERTEBRA_COLUMNS


def test_heatmap_files_hold_the_small_grid(tmp_path):
    paths = write_case(tmp_path / "data", "sub-a01_dir-ax")
    assert prepare_heatmap(heatmap(tmp_path, heatmap_shape=(64, 64, 128))) == 0
    folder = tmp_path / "work" / "heatmap" / "1mm" / "training"
    found = read_ct(folder / "sub-a01_dir-ax_ct.nii")
    # Read from the file: the order of voxels in memory decides about the last bits of a resampled value.
    expected = heatmap_ct(working_ct(read_ct(paths["ct"]), 1.0), (64, 64, 128))
    assert found.data.dtype == np.int16 and found.shape == (64, 64, 128)
    np.testing.assert_array_equal(found.data, np.rint(expected.data))
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    centroids = read_centroids(folder / "sub-a01_dir-ax_ctd.json", found.grid)
    source = read_centroids(paths["centroids"], two_vertebrae()[0].grid)
    np.testing.assert_array_equal(centroids.codes, [28, 20])
    np.testing.assert_allclose(centroids.points_mm, source.points_mm, atol=2e-3)
    # 40 x 48 x 56 mm in 64 x 64 x 128 voxels: (8.5, 6.5, 18.5) voxels of 2 mm are 34 mm from the back face of
    # A, 18 from the left face, 18 from the top, and a voxel's centre lies half a voxel inside.
    middle = [34 * 64 / 48 - 0.5, 18 * 64 / 40 - 0.5, 18 * 128 / 56 - 0.5]
    np.testing.assert_allclose(centroids.voxels(found)[0], middle, atol=2e-3)
    header = json.loads((folder / "sub-a01_dir-ax_ctd.json").read_text())[0]
    assert header == {"direction": ["P", "R", "I"]}


def test_files_for_centres_hold_the_whole_scan_and_its_spine(tmp_path):
    paths = write_case(tmp_path / "data", "sub-a01")
    assert prepare_heatmap(heatmap(tmp_path, target="centres", spacing_mm=1.0)) == 0
    folder = tmp_path / "work" / "heatmap" / "1mm" / "training"
    assert names(folder) == [f"sub-a01_{end}" for end in ("ct.nii", "prepared.json", "spine.json")]
    found, expected = read_ct(folder / "sub-a01_ct.nii"), working_ct(read_ct(paths["ct"]), 1.0)
    np.testing.assert_array_equal(found.data, np.rint(expected.data))
    spine = read_spine(folder / "sub-a01_spine.json")
    assert (spine.codes, spine.has_rib, spine.is_complete) == ((28, 20), (True, False), False)
    # As above: 34, 18 and 18 mm from the faces, and the centre of a voxel of 1 mm lies half a one inside.
    np.testing.assert_allclose(spine.points[0], [33.5, 17.5, 17.5], atol=2e-3)
    assert spine.sacrum is None


def test_settings_are_saved_with_what_later_stages_need(tmp_path):
    write_case(tmp_path / "data", "sub-a01")
    assert prepare_segmentation(segmentation(tmp_path, spacing_mm=2.0)) == 0
    assert prepare_heatmap(heatmap(tmp_path, spacing_mm=2.0)) == 0
    saved = json.loads((tmp_path / "work" / "segmentation" / "2mm" / "settings.json").read_text())
    assert saved["spacing_mm"] == 2.0
    saved = json.loads((tmp_path / "work" / "heatmap" / "2mm" / "settings.json").read_text())
    assert saved["heatmap_shape"] == [16, 16, 32]


def test_training_and_validation_are_prepared_and_test_is_left_out(tmp_path):
    for split in ("training", "validation", "test"):
        write_case(tmp_path / "data", f"sub-{split}", split=split)
    assert prepare_segmentation(segmentation(tmp_path)) == 0
    assert prepare_heatmap(heatmap(tmp_path)) == 0
    for stage in ("segmentation", "heatmap"):
        found = names(tmp_path / "work" / stage / "1mm")
        assert "training/sub-training_ct.nii" in found
        assert "validation/sub-validation_ct.nii" in found
        assert not [name for name in found if "test" in name]


def test_series_of_one_patient_stay_apart(tmp_path):
    keys = ["sub-a01_split-verse1", "sub-a01_split-verse2"]
    for key in keys:
        write_case(tmp_path / "data", key)
    assert prepare_segmentation(segmentation(tmp_path)) == 0
    rows = table(tmp_path / "work" / "segmentation" / "1mm" / "training" / "vertebrae.csv")
    assert [row["case"] for row in rows] == [keys[0], keys[0], keys[1], keys[1]]


def test_processes_give_the_same_files_as_one(tmp_path):
    for key in ("sub-a01", "sub-a02", "sub-a03"):
        write_case(tmp_path / "data", key)
    save(write_case(tmp_path / "data", "sub-bad")["mask"], np.zeros((2, 2, 2), np.uint8))
    alone = segmentation(tmp_path, work_dir=tmp_path / "alone")
    together = segmentation(tmp_path, work_dir=tmp_path / "together", workers=2)
    assert prepare_segmentation(alone) == prepare_segmentation(together) == 1
    assert len(names(tmp_path / "alone" / "segmentation" / "1mm")) == 3 * len(WHOLE) + 2
    assert contents(tmp_path / "alone") == contents(tmp_path / "together")


def test_a_killed_process_is_a_bad_case_and_no_traceback(tmp_path, capsys, monkeypatch):
    write_case(tmp_path / "data", "sub-a01")

    def killed(work, jobs, **how):
        return [(job, "a process that was killed") for job in jobs]

    monkeypatch.setattr(prepare.execution, "outcomes", killed)
    assert prepare_segmentation(segmentation(tmp_path)) == 1
    said = capsys.readouterr().err
    assert "_ct.nii.gz: expected to be prepared, found a process that was killed." in said


# Incomplete cases


def test_incomplete_cases_are_one_warning_each(tmp_path, capsys):
    write_case(tmp_path / "data", "sub-a01")
    write_case(tmp_path / "data", "sub-noct", parts=("mask", "centroids"))
    write_case(tmp_path / "data", "sub-nomask", parts=("ct", "centroids"))
    write_case(tmp_path / "data", "sub-onlyct", parts=("ct",))
    assert prepare_segmentation(segmentation(tmp_path)) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warnings == [
        "warning: sub-noct (training) is left out, it has no CT",
        "warning: sub-nomask (training) is left out, it has no mask",
        "warning: sub-onlyct (training) is left out, it has no mask",
    ]
    # Points are enough for the heatmap.
    assert prepare_heatmap(heatmap(tmp_path)) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warnings == [
        "warning: sub-noct (training) is left out, it has no CT",
        "warning: sub-onlyct (training) is left out, it has no centroids",
    ]
    assert (tmp_path / "work" / "heatmap" / "1mm" / "training" / "sub-nomask_ct.nii").is_file()


def test_points_come_from_the_mask_where_there_is_no_file(tmp_path, capsys):
    write_case(tmp_path / "data", "sub-a01", parts=("ct", "mask"))
    assert prepare_heatmap(heatmap(tmp_path)) == 0
    assert "sub-a01: 2 vertebrae, centroids derived from the mask" in capsys.readouterr().out
    folder = tmp_path / "work" / "heatmap" / "1mm" / "training"
    assert json.loads((folder / "sub-a01_ctd.json").read_text())[0]["source"] == "mask"
    found = read_centroids(folder / "sub-a01_ctd.json", read_ct(folder / "sub-a01_ct.nii").grid)
    np.testing.assert_allclose(found.points_mm, [[17, 13, 37], [17, 13, 7]], atol=2e-3)


@pytest.mark.parametrize("parts", [("ct",), ("mask", "centroids")])
def test_nothing_to_train_on_is_an_error(tmp_path, capsys, parts):
    write_case(tmp_path / "data", "sub-a01", parts=parts)
    write_case(tmp_path / "data", "sub-a02", split="validation")
    for run, settings in ((prepare_segmentation, segmentation), (prepare_heatmap, heatmap)):
        assert run(settings(tmp_path, skip_bad=True)) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {tmp_path / 'data'}: expected a complete training case, found none")
    assert not (tmp_path / "work").exists()


def test_a_missing_data_set_is_an_error_that_names_it(tmp_path, capsys):
    assert prepare_heatmap(heatmap(tmp_path)) == 1
    assert str(tmp_path / "data") in capsys.readouterr().err


# Bad cases


def spoil(paths: dict[str, Path], kind: str) -> Path:
    """Make one file of a case bad; gives the file that the message must name."""
    shape = two_vertebrae()[0].shape
    if kind == "truncated CT":
        noise = np.random.default_rng(0).integers(0, 999, shape).astype(np.int16)
        whole = save(paths["ct"], noise).read_bytes()
        paths["ct"].write_bytes(whole[: len(whole) // 2])
    if kind == "empty CT":
        paths["ct"].write_bytes(b"")
    if kind == "text CT":
        paths["ct"].write_text("no scan")
    if kind == "CT of four axes":
        save(paths["ct"], np.zeros((*shape, 2), np.int16))
    if kind == "CT without a number":
        save(paths["ct"], np.full(shape, np.nan, np.float32))
    if kind == "mask of another shape":
        save(paths["mask"], np.ones((3, 4, 5), np.uint8), two_vertebrae()[1].affine)
    if kind == "mask elsewhere":
        save(paths["mask"], two_vertebrae()[1].data, np.diag([2, 2, 3, 1]))
    if kind == "mask of other labels":
        save(paths["mask"], np.full(shape, 99, np.uint8), two_vertebrae()[1].affine)
    if kind == "empty mask":
        save(paths["mask"], np.zeros(shape, np.uint8), two_vertebrae()[1].affine)
    if kind == "broken centroids":
        paths["centroids"].write_text("[")
    if kind == "no centroids":
        paths["centroids"].write_text("[]")
    return paths["ct" if "CT" in kind else "mask" if "mask" in kind else "centroids"]


CT_KINDS = ["truncated CT", "empty CT", "text CT", "CT of four axes", "CT without a number"]
MASK_KINDS = ["mask of another shape", "mask elsewhere", "mask of other labels", "empty mask"]


@pytest.mark.parametrize("kind", CT_KINDS + MASK_KINDS)
def test_a_bad_case_is_named_and_the_others_go_on(tmp_path, capsys, kind):
    write_case(tmp_path / "data", "sub-a01")
    bad = spoil(write_case(tmp_path / "data", "sub-b02"), kind)
    write_case(tmp_path / "data", "sub-c03")
    assert prepare_segmentation(segmentation(tmp_path)) == 1
    said = [
        line for line in capsys.readouterr().err.splitlines() if f"bad case sub-b02: {bad}: expected" in line
    ]
    assert len(said) == 1 and "found" in said[0]
    root = tmp_path / "work" / "segmentation" / "1mm"
    assert not [name for name in names(root) if "sub-b02" in name]
    rows = table(root / "training" / "vertebrae.csv")
    assert {row["case"] for row in rows} == {"sub-a01", "sub-c03"}
    assert prepare_segmentation(segmentation(tmp_path, skip_bad=True)) == 0


@pytest.mark.parametrize("kind", [*CT_KINDS, "broken centroids", "no centroids"])
def test_a_bad_case_of_the_heatmap_is_named_and_the_others_go_on(tmp_path, capsys, kind):
    write_case(tmp_path / "data", "sub-a01")
    bad = spoil(write_case(tmp_path / "data", "sub-b02"), kind)
    assert prepare_heatmap(heatmap(tmp_path)) == 1
    assert f"bad case sub-b02: {bad}: expected" in capsys.readouterr().err
    assert not [name for name in names(tmp_path / "work" / "heatmap" / "1mm") if "sub-b02" in name]
    assert prepare_heatmap(heatmap(tmp_path, skip_bad=True)) == 0


@pytest.mark.parametrize(
    ("prepare", "settings"), [(prepare_segmentation, segmentation), (prepare_heatmap, heatmap)]
)
def test_a_case_that_takes_too_much_memory_is_named_with_the_option_that_allows_it(
    tmp_path, capsys, prepare, settings
):
    paths = write_case(tmp_path / "data", "sub-a01")
    assert prepare(settings(tmp_path, max_gigabytes=1e-5)) == 1
    first = paths["mask" if prepare is prepare_segmentation else "ct"]
    said = f"bad case sub-a01: {first}: expected a scan of at most 1e-05 GB (--max-gigabytes), found"
    assert said in capsys.readouterr().err
    assert prepare(settings(tmp_path)) == 0


def test_only_bad_cases_are_an_error_even_if_they_may_be_skipped(tmp_path, capsys):
    spoil(write_case(tmp_path / "data", "sub-a01"), "empty CT")
    assert prepare_segmentation(segmentation(tmp_path, skip_bad=True)) == 1
    assert "expected a case to train on" in capsys.readouterr().err


def test_a_case_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch, capsys):
    write_case(tmp_path / "data", "sub-a01")

    def full_disk(path, rows):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        for module in (working_case, prepare):
            patch.setattr(module, "write_table", full_disk)
        assert prepare_segmentation(segmentation(tmp_path)) == 1
    assert "_ct.nii.gz: OSError: disk full" in capsys.readouterr().err
    assert names(tmp_path / "work" / "segmentation" / "1mm") == ["settings.json"]


# Reruns


def stamps(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in names(folder) if "sub-" in name}


def test_a_rerun_prepares_only_what_is_missing(tmp_path, capsys):
    for key in ("sub-a01", "sub-a02"):
        write_case(tmp_path / "data", key)
    assert prepare_segmentation(segmentation(tmp_path)) == 0
    root = tmp_path / "work" / "segmentation" / "1mm"
    before, before_table = stamps(root), (root / "training" / "vertebrae.csv").read_text()
    (root / "training" / "sub-a02_msk.nii").unlink()
    capsys.readouterr()
    assert prepare_segmentation(segmentation(tmp_path)) == 0
    out = capsys.readouterr().out
    assert "sub-a02:" in out and "sub-a01:" not in out
    assert {name for name, stamp in stamps(root).items() if stamp == before[name]} == {
        f"training/sub-a01_{end}" for end in WHOLE
    }
    assert (root / "training" / "vertebrae.csv").read_text() == before_table


def prepared_now(run, settings, capsys) -> int:
    """Run a stage, and give how many cases it says that it prepared."""
    assert run(settings) == 0
    return int(re.search(r"ready, (\d+) of them prepared now", capsys.readouterr().out)[1])


@pytest.mark.parametrize("kind", ["ct", "centroids"])
def test_a_changed_source_is_prepared_again(tmp_path, capsys, kind):
    paths = write_case(tmp_path / "data", "sub-a01")
    age(*paths.values())
    assert prepared_now(prepare_heatmap, heatmap(tmp_path), capsys) == 1
    assert prepared_now(prepare_heatmap, heatmap(tmp_path), capsys) == 0
    content = paths[kind].read_bytes()
    if kind == "centroids":
        changed = content.replace(b"8.5", b"9.5")
        paths[kind].write_bytes(changed)
        assert len(changed) == len(content)
    else:
        save(paths[kind], two_vertebrae()[0].data[::-1].copy(), two_vertebrae()[0].affine)
    assert prepared_now(prepare_heatmap, heatmap(tmp_path), capsys) == 1
    assert prepared_now(prepare_heatmap, heatmap(tmp_path), capsys) == 0


def test_a_source_that_changed_under_its_size_and_time_is_prepared_again(tmp_path, capsys):
    points = write_case(tmp_path / "data", "sub-a01")["centroids"]
    age(points)
    assert prepared_now(prepare_heatmap, heatmap(tmp_path), capsys) == 1
    before = points.stat()
    points.write_bytes(points.read_bytes().replace(b"8.5", b"9.5"))
    os.utime(points, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert points.stat().st_size == before.st_size
    assert prepared_now(prepare_heatmap, heatmap(tmp_path), capsys) == 1
    assert prepared_now(prepare_heatmap, heatmap(tmp_path), capsys) == 0


def test_a_source_that_was_copied_or_has_nothing_to_do_with_it_is_not_prepared_again(tmp_path, capsys):
    paths = write_case(tmp_path / "data", "sub-a01")
    assert prepared_now(prepare_segmentation, segmentation(tmp_path), capsys) == 1
    assert prepared_now(prepare_heatmap, heatmap(tmp_path), capsys) == 1
    age(*paths.values(), seconds=-1000)
    assert prepared_now(prepare_segmentation, segmentation(tmp_path), capsys) == 0
    assert prepared_now(prepare_heatmap, heatmap(tmp_path), capsys) == 0
    paths["centroids"].write_text("[]")
    paths["mask"].unlink()
    write_volume(paths["mask"], two_vertebrae()[1])
    assert prepared_now(prepare_segmentation, segmentation(tmp_path), capsys) == 0


@pytest.mark.parametrize(
    "damage",
    [
        "cut output",
        "no output",
        "no sidecar",
        "broken sidecar",
        "odd sidecar",
        "odd source",
        "odd name",
        "nested",
    ],
)
def test_a_case_that_is_not_whole_is_prepared_again(tmp_path, capsys, damage):
    write_case(tmp_path / "data", "sub-a01")
    assert prepared_now(prepare_segmentation, segmentation(tmp_path), capsys) == 1
    before = contents(tmp_path / "work")
    folder = tmp_path / "work" / "segmentation" / "1mm" / "training"
    ct, sidecar = folder / "sub-a01_ct.nii", folder / "sub-a01_prepared.json"
    if damage == "cut output":
        ct.write_bytes(ct.read_bytes()[:-1])
    elif damage == "broken sidecar":
        sidecar.write_text(sidecar.read_text()[:40])
    elif damage == "odd sidecar":
        sidecar.write_text('{"outputs": {}}')
    elif damage == "odd source":
        sidecar.write_text(re.sub(r'"ct": \{[^}]*\}', '"ct": 5', sidecar.read_text()))
    elif damage == "odd name":
        sidecar.write_text(sidecar.read_text().replace('"sub-a01_ct.nii"', '""'))
    elif damage == "nested":
        sidecar.write_text("[" * 9000)
    else:
        (ct if damage == "no output" else sidecar).unlink()
    assert prepared_now(prepare_segmentation, segmentation(tmp_path), capsys) == 1
    assert contents(tmp_path / "work") == before


def test_another_margin_prepares_again(tmp_path, capsys):
    write_case(tmp_path / "data", "sub-a01")
    assert prepared_now(prepare_segmentation, segmentation(tmp_path), capsys) == 1
    assert prepared_now(prepare_segmentation, segmentation(tmp_path, margin_mm=3.0), capsys) == 1
    found = open_memory_map(tmp_path / "work" / "segmentation" / "1mm" / "training" / "sub-a01_ct.nii")
    # The labels' faces lie at 27.5 to 39.5, 11.5 to 23.5, and 11.5 to the end of the scan at 55.5.
    assert found.shape == (14, 14, 45)


def test_another_shape_prepares_the_heatmap_data_again(tmp_path):
    write_case(tmp_path / "data", "sub-a01")
    assert prepare_heatmap(heatmap(tmp_path)) == 0
    path = tmp_path / "work" / "heatmap" / "1mm" / "training" / "sub-a01_ct.nii"
    before = path.read_bytes()
    assert prepare_heatmap(heatmap(tmp_path, heatmap_shape=(8, 8, 16))) == 0
    assert path.read_bytes() != before


@pytest.mark.parametrize("run, settings", [(prepare_heatmap, heatmap), (prepare_segmentation, segmentation)])
def test_data_of_two_spacings_lie_side_by_side(tmp_path, capsys, run, settings):
    write_case(tmp_path / "data", "sub-a01")
    assert run(settings(tmp_path)) == 0
    (stage,) = (tmp_path / "work").iterdir()
    before = contents(stage / "1mm")
    capsys.readouterr()
    assert prepared_now(run, settings(tmp_path, spacing_mm=1.5, preset="small"), capsys) == 1
    assert sorted(path.name for path in stage.iterdir()) == ["1.5mm", "1mm"]
    assert contents(stage / "1mm") == before
    saved = [json.loads((stage / name / "settings.json").read_text()) for name in ("1mm", "1.5mm")]
    assert [found["spacing_mm"] for found in saved] == [1.0, 1.5]
    # The word of the preset decides nothing: spacing and content are the same.
    assert prepared_now(run, settings(tmp_path, preset="paper"), capsys) == 0


@pytest.mark.parametrize(
    "spacing_mm, name", [(1.0, "1mm"), (2.0, "2mm"), (1.5, "1.5mm"), (3, "3mm"), (0.75, "0.75mm")]
)
def test_the_folder_of_a_spacing(spacing_mm, name):
    assert spacing_folder(Path("work"), "heatmap", spacing_mm) == Path("work/heatmap") / name


def test_another_margin_leaves_nothing_of_the_old_one(tmp_path, capsys):
    write_case(tmp_path / "data", "sub-a01")
    gone = write_case(tmp_path / "data", "sub-a02")
    assert prepare_segmentation(segmentation(tmp_path)) == 0
    gone["ct"].unlink()
    capsys.readouterr()
    assert prepare_segmentation(segmentation(tmp_path, margin_mm=3.0)) == 0
    assert "prepared with other settings" in capsys.readouterr().out
    root = tmp_path / "work" / "segmentation" / "1mm"
    assert not [name for name in names(root) if "sub-a02" in name]
    found = open_memory_map(root / "training" / "sub-a01_ct.nii")
    assert found.shape == (14, 14, 45)
    assert {row["case"] for row in table(root / "training" / "vertebrae.csv")} == {"sub-a01"}


def test_a_run_stopped_after_a_change_of_margin_leaves_no_table_of_the_old_one(tmp_path, monkeypatch):
    write_case(tmp_path / "data", "sub-a01")
    assert prepare_segmentation(segmentation(tmp_path)) == 0

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "_run_jobs", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare_segmentation(segmentation(tmp_path, margin_mm=3.0))
    assert names(tmp_path / "work" / "segmentation" / "1mm") == ["settings.json"]


def test_outdated_files_are_gone_before_new_ones_are_made(tmp_path):
    case = Case("sub-a01", "sub-a01", ct=tmp_path / "sub-a01_ct.nii.gz")
    job = prepare._Job(case, tmp_path, segmentation(tmp_path))
    for path in (*job.outputs, job.sidecar, tmp_path / ".sub-a01_msk.nii.77.part.nii"):
        path.write_text("outdated")
    others = tmp_path / ".sub-a01_dir-ax_msk.nii.77.part.nii"
    others.write_text("of another case")
    job.discard()
    assert names(tmp_path) == [others.name]


def test_a_second_data_set_joins_the_first(tmp_path):
    write_case(tmp_path / "one", "sub-a01")
    write_case(tmp_path / "two", "sub-b01")
    for data_dir in ("one", "two"):
        assert prepare_segmentation(segmentation(tmp_path, data_dir=tmp_path / data_dir)) == 0
    rows = table(tmp_path / "work" / "segmentation" / "1mm" / "training" / "vertebrae.csv")
    assert {row["case"] for row in rows} == {"sub-a01", "sub-b01"}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_case_that_changes_its_split_leaves_the_old_one(tmp_path, split):
    write_case(tmp_path / "data", "sub-a01")
    moving = write_case(tmp_path / "data", "sub-a02")
    assert prepare_segmentation(segmentation(tmp_path)) == 0
    for path in moving.values():
        path.unlink()
    write_case(tmp_path / "data", "sub-a02", split=split)
    assert prepare_segmentation(segmentation(tmp_path)) == 0
    root = tmp_path / "work" / "segmentation" / "1mm"
    assert not [name for name in names(root) if name.startswith("training/sub-a02")]
    assert {row["case"] for row in table(root / "training" / "vertebrae.csv")} == {"sub-a01"}
    assert (root / "validation" / "sub-a02_ct.nii").is_file() == (split == "validation")


# From the shell


def test_workers_never_load_tensorflow():
    program = (
        "import sys; import utils.preparation.prepare, utils.imaging.crops;"
        "print([name for name in sys.modules if name.split('.')[0] in ('tensorflow', 'keras')])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert ran.stdout.strip() == "[]"


@pytest.mark.skipif(not DATA.is_dir(), reason=NO_DATA)
@pytest.mark.parametrize("stage", ["heatmap", "segmentation"])
def test_scripts_prepare_the_real_case_and_name_the_incomplete_ones(tmp_path, stage):
    command = [
        sys.executable,
        f"pre_processing_{stage}.py",
        "--data-dir",
        str(real_tree(tmp_path / "data")),
        "--work-dir",
        str(tmp_path),
    ]
    command += ["--preset", "small"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    assert "sub-verse014: 5 vertebrae" in ran.stdout
    for key in ("sub-verse004", "sub-gl003_dir-ax"):
        assert f"warning: {key} (training) is left out, it has no CT" in ran.stderr
    assert "Traceback" not in ran.stderr
    spacing = "3mm" if stage == "heatmap" else "2mm"
    found = read_ct(tmp_path / stage / spacing / "training" / "sub-verse014_ct.nii")
    # The stack is turned by 7.9 degrees; what holds it lies along the patient's axes.
    assert found.shape == ((63, 37, 67) if stage == "heatmap" else (95, 55, 99))
    np.testing.assert_array_equal(np.sign(found.affine[:3, :3]), [[0, 1, 0], [-1, 0, 0], [0, 0, -1]])


@pytest.mark.parametrize("stage", ["heatmap", "segmentation"])
def test_scripts_end_with_1_and_no_traceback_without_data(tmp_path, stage):
    command = [
        sys.executable,
        f"pre_processing_{stage}.py",
        "--data-dir",
        "nowhere",
        "--work-dir",
        str(tmp_path),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: nowhere:") and "Traceback" not in ran.stderr
    assert list(tmp_path.iterdir()) == []


def run_preparation(stage: str, *options: str, data: Path, work: Path) -> subprocess.Popen:
    command = [sys.executable, f"pre_processing_{stage}.py", "--data-dir", str(data), "--work-dir", str(work)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    command += ["--preset", "small", *options]
    return subprocess.Popen(command, cwd=ROOT, **quiet)


def contents_of_a_whole_run(stage: str, tmp_path: Path, cases: int) -> dict[str, bytes]:
    """Write cases of which each takes some hundredths of a second, and prepare them without a break."""
    for number in range(cases):
        paths = write_case(
            tmp_path / "data", f"sub-a{number:02}", split=("training", "validation")[number % 2]
        )
        ct, mask = two_vertebrae(shape=(60 + number, 90, 140))
        write_volume(paths["ct"], ct)
        write_volume(paths["mask"], mask)
    assert (
        run_preparation(stage, "--workers", "1", data=tmp_path / "data", work=tmp_path / "whole").wait() == 0
    )
    return contents(tmp_path / "whole")


def kill_after_the_next_case(run: subprocess.Popen, work: Path, *, delay: float) -> bool:
    """Kill a run some moments after it has prepared one more case; False if it ended before."""
    done = len(list(work.rglob("*_prepared.json")))
    while run.poll() is None and len(list(work.rglob("*_prepared.json"))) == done:
        time.sleep(0.002)
    time.sleep(delay)
    run.kill()
    run.communicate()
    return run.returncode == -signal.SIGKILL


@pytest.mark.parametrize("stage", ["heatmap", "segmentation"])
def test_runs_killed_at_random_moments_end_as_an_unbroken_one(tmp_path, stage):
    whole = contents_of_a_whole_run(stage, tmp_path, cases=12)
    delays = np.random.default_rng(4).uniform(0, 0.04, 5)
    places = {"data": tmp_path / "data", "work": tmp_path / "work"}
    killed = [
        kill_after_the_next_case(
            run_preparation(stage, "--workers", "1", **places), places["work"], delay=delay
        )
        for delay in delays
    ]
    assert sum(killed) >= 3
    last = run_preparation(stage, **places)
    assert last.wait() == 0, last.stderr.read()
    assert contents(tmp_path / "work") == whole


def test_a_cluster_and_shards_give_the_same_files_as_one_process(tmp_path, scheduler):
    whole = contents_of_a_whole_run("segmentation", tmp_path, cases=5)
    run = run_preparation(
        "segmentation", "--scheduler", scheduler, data=tmp_path / "data", work=tmp_path / "cluster"
    )
    assert run.wait() == 0, run.stderr.read()
    assert contents(tmp_path / "cluster") == whole
    places = {"data": tmp_path / "data", "work": tmp_path / "shards"}
    runs = [run_preparation("segmentation", "--shard", f"{n}/2", "--workers", "1", **places) for n in (1, 2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert contents(tmp_path / "shards") == whole


def test_a_shard_prepares_its_share_alone(tmp_path, capsys):
    for key in ("sub-a01", "sub-a02", "sub-a03"):
        write_case(tmp_path / "data", key)
    assert prepared_now(prepare_segmentation, segmentation(tmp_path, shard="2/2"), capsys) == 1
    folder = tmp_path / "work" / "segmentation" / "1mm" / "training"
    assert [path.name for path in folder.glob("*_ct.nii")] == ["sub-a02_ct.nii"]
    assert prepared_now(prepare_segmentation, segmentation(tmp_path, shard="1/2"), capsys) == 2
    assert {row["case"] for row in table(folder / "vertebrae.csv")} == {"sub-a01", "sub-a02", "sub-a03"}


def test_a_shard_leaves_alone_what_another_may_be_writing(tmp_path, capsys):
    for key in ("sub-a01", "sub-a02"):
        write_case(tmp_path / "data", key)
    folder = tmp_path / "work" / "segmentation" / "1mm" / "training"
    folder.mkdir(parents=True)
    (folder / "sub-a02_ct.nii").write_text("half of a case")
    assert prepared_now(prepare_segmentation, segmentation(tmp_path, shard="1/2"), capsys) == 1
    assert (folder / "sub-a02_ct.nii").read_text() == "half of a case"
    assert {row["case"] for row in table(folder / "vertebrae.csv")} == {"sub-a01"}


def test_a_scheduler_that_is_not_there_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare.execution, "CONNECT_SECONDS", 1)
    write_case(tmp_path / "data", "sub-a01")
    assert prepare_segmentation(segmentation(tmp_path, scheduler="tcp://127.0.0.1:9")) == 1
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("error: --scheduler tcp://127.0.0.1:9: expected")
    )


def test_a_script_with_two_workers_ends_well(tmp_path):
    for key in ("sub-a01", "sub-a02"):
        write_case(tmp_path / "data", key)
    command = [sys.executable, "pre_processing_segmentation.py", "--data-dir", str(tmp_path / "data")]
    options = ["--work-dir", str(tmp_path / "work"), "--workers", "2"]
    ran = subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count(" vertebrae, ") == 2


def test_a_work_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    write_case(tmp_path / "data", "sub-a01")
    (tmp_path / "work").write_text("a file where the folder should be")
    assert prepare_heatmap(heatmap(tmp_path)) == 1
    assert str(tmp_path / "work") in capsys.readouterr().err


# Label maps


def test_masks_alone_are_prepared_for_images_drawn_from_them(tmp_path, capsys):
    write_case(tmp_path / "data", "sub-a01")
    write_case(tmp_path / "data", "sub-b02", parts=("mask", "centroids"))
    write_case(tmp_path / "data", "sub-c03", parts=("mask", "centroids"), split="validation")
    assert prepare_segmentation(segmentation(tmp_path, label_maps=True)) == 0
    assert "sub-c03 (validation) is left out, it has no CT" in capsys.readouterr().err
    work = tmp_path / "work"
    assert names(work / "segmentation" / "1mm" / "training") == sorted(
        [*(f"sub-a01_{end}" for end in WHOLE), *(f"sub-b02_{end}" for end in WHOLE[1:]), "vertebrae.csv"]
    )
    cases = [row["case"] for row in table(work / "segmentation" / "1mm" / "training" / "vertebrae.csv")]
    assert cases == ["sub-a01", "sub-a01", "sub-b02", "sub-b02"]


def test_preparing_again_with_label_maps_adds_what_is_missing(tmp_path, capsys):
    write_case(tmp_path / "data", "sub-a01")
    write_case(tmp_path / "data", "sub-b02", parts=("mask",))
    prepare_segmentation(segmentation(tmp_path))
    folder = tmp_path / "work" / "segmentation" / "1mm" / "training"
    assert not [name for name in names(folder) if "sub-b02" in name]
    for _ in range(2):
        prepare_segmentation(segmentation(tmp_path, label_maps=True))
    assert "0 of them prepared now" in capsys.readouterr().out
    assert (folder / "sub-b02_msk.nii").is_file()


@pytest.mark.parametrize("label_maps", [False, True])
def test_cases_below_a_record_of_phantoms_are_known_as_such(tmp_path, label_maps):
    write_case(tmp_path / "data" / "phantoms", "sub-a01")
    write_case(tmp_path / "data" / "real", "sub-b02")
    (tmp_path / "data" / "phantoms" / PHANTOM_RECORD).write_text('{"seed": 0}')
    prepare_segmentation(segmentation(tmp_path, label_maps=label_maps))
    folder = tmp_path / "work" / "segmentation" / "1mm" / "training"
    sidecars = [folder / f"sub-{key}_prepared.json" for key in ("a01", "b02")]
    assert [origin_of(path) for path in sidecars] == ["phantom", "scan"]
    assert not any(is_mask_alone(path) for path in sidecars)


def test_own_cases_beside_phantoms_are_no_phantoms(tmp_path):
    write_case(tmp_path / "data", "sub-a01")
    paths = write_case(tmp_path / "elsewhere", "sub-b02", parts=("ct", "mask"))
    (tmp_path / "data" / PHANTOM_RECORD).write_text('{"seed": 0}')
    own = {"source": "pairs", "ct": paths["ct"], "mask": paths["mask"], "data_dir": tmp_path / "data"}
    assert add_own_case(DataSettings(**own)) == []
    prepare_segmentation(segmentation(tmp_path))
    folder = tmp_path / "work" / "segmentation" / "1mm" / "training"
    assert origin_of(folder / "sub-a01_prepared.json") == "phantom"
    assert origin_of(folder / "sub-b02_prepared.json") == "scan"


def test_label_maps_stay_when_cases_are_prepared_without(tmp_path, capsys):
    run, settings = prepare_segmentation, segmentation
    write_case(tmp_path / "data", "sub-a01")
    write_case(tmp_path / "data", "sub-b02", parts=("mask",))
    assert run(settings(tmp_path, label_maps=True)) == 0
    (stage,) = (tmp_path / "work").iterdir()
    before = contents(stage)
    capsys.readouterr()
    assert prepared_now(run, settings(tmp_path), capsys) == 0
    assert contents(stage) == before
    assert json.loads((stage / "1mm" / "settings.json").read_text())["label_maps"] is True
    # What joins later is prepared like the others.
    write_case(tmp_path / "data", "sub-c03", parts=("mask",))
    assert prepared_now(run, settings(tmp_path), capsys) == 1
    assert (stage / "1mm" / "training" / "sub-c03_msk.nii").is_file()


def test_a_folder_keeps_its_fine_masks(tmp_path, capsys):
    write_case(tmp_path / "data", "sub-a01")
    folder = tmp_path / "work" / "segmentation" / "1mm" / "training"
    bits = segmentation(tmp_path, fine_masks=False)
    assert prepared_now(prepare_segmentation, bits, capsys) == 1
    assert not (folder / "sub-a01_fine.nii").is_file()
    assert prepared_now(prepare_segmentation, segmentation(tmp_path), capsys) == 1
    assert (folder / "sub-a01_fine.nii").is_file()
    # A training on bits is served by what is there.
    assert prepared_now(prepare_segmentation, bits, capsys) == 0
    assert (folder / "sub-a01_fine.nii").is_file()
