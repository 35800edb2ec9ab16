"""A run of the inference: inputs, networks, bad scans, reruns."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from tests.imaging.dicom_series import write_series
from tests.imaging.itk_files import meta
from tests.imaging.itk_files import nrrd as nrrd_bytes
from tests.walk.column import AFFINE, HU_A_RANK, column, column_ct, heat_of, oracle, told
from utils.files import sha256_of
from utils.imaging.centroids import BEHIND_MM
from utils.imaging.grids import oriented
from utils.imaging.intensities import denormalise_hu
from utils.imaging.nifti import read_mask, write_volume
from utils.imaging.volume import Volume
from utils.localisation.candidates import BODY, Reading, patches_at
from utils.prediction import networks, one_scan, predict
from utils.prediction.networks import Networks, load_networks
from utils.prediction.predict import infer
from utils.prediction.quality import Remark, read_quality
from utils.settings import InferenceSettings
from utils.verse.cases import index_cases
from utils.verse.labels import LEVEL_NAMES, MAX_RANK
from utils.walk.records import WalkSettings

ROOT = Path(__file__).resolve().parents[2]
#: The levels of the column's blocks.
NAMES = ("T10", "T11", "T12", "L1", "L2", "L3")


class FakeNetworks:
    """The networks for the column's CT.

    `names` are the levels that the labelling network gives to the six blocks, with logits of `strength`, and
    a rib with each of the chest. The segmentation network tells blocks by their Hounsfield units; `silent`
    are those that it does not give. With `is_published` the heatmap network says where there is spine, and no
    more.
    """

    def __init__(self, names=NAMES, *, strength=8.0, silent=(), is_published=False):
        self.names, self.strength, self.silent, self.is_published = names, strength, silent, is_published
        self.patches = 0

    def heat(self, ct: np.ndarray) -> np.ndarray:
        hu = denormalise_hu(ct)
        return (hu > 0).astype(np.float32) if self.is_published else self.localise(hu)

    def localise(self, hu: np.ndarray) -> np.ndarray:
        outputs = np.zeros((*hu.shape, 2), np.float32)
        for body in bodies_of(hu):
            heat = heat_of([body], hu.shape, np.eye(4), sigma=1.5).data
            outputs[..., BODY] = np.maximum(outputs[..., BODY], heat)
        return outputs

    def labels(self, ct: Volume, points: np.ndarray) -> Reading:
        levels, ribs = np.zeros((len(points), 1 + MAX_RANK)), np.zeros(len(points))
        levels[:, 0] = -4.0  # there is a vertebra, whichever
        bodies = bodies_of(ct.data)
        nearest = np.linalg.norm(bodies[None] - points[:, None], axis=2).argmin(axis=1)
        for row, place in enumerate(nearest):
            levels[row, 1 + LEVEL_NAMES.index(self.names[place])] = self.strength
            ribs[row] = 3.0 if self.names[place].startswith("T") else -3.0
        return Reading(levels, ribs, bodies[nearest] - points)

    def patch(self, ct: np.ndarray, memory: np.ndarray) -> np.ndarray:
        self.patches += 1
        ranks = np.rint(np.maximum(denormalise_hu(ct), 0) / HU_A_RANK)
        if self.is_published:
            return oracle(ranks, memory)
        return told(ranks, memory) * ~np.isin(ranks, self.silent)

    def networks(self, preset: str = "small") -> Networks:
        parts = (self.heat, self.patch, (40, 44, 84), 32, 2.0, preset, {"heatmap": "a", "segmentation": "b"})
        labels = None if self.is_published else self.labels
        return Networks(*parts, finds_centres=not self.is_published, labels=labels)


def bodies_of(hu: np.ndarray) -> np.ndarray:
    """The centres of bodies in front of the middles of the blocks, from the top down."""
    numbers, count = ndimage.label(hu > 100)
    middles = ndimage.center_of_mass(numbers > 0, numbers, range(1, count + 1))
    middles = np.array(sorted(middles, key=lambda middle: middle[2])).reshape(-1, 3)
    return middles - [BEHIND_MM / Networks.heatmap_mm, 0, 0]


@pytest.fixture(autouse=True)
def same_device(monkeypatch):
    """TensorFlow's devices are chosen once a process; a test must not choose for those after it."""
    monkeypatch.setattr("utils.learning.runtime.choose_device", lambda device: "cpu")


@pytest.fixture(autouse=True)
def no_starter_weights(monkeypatch, tmp_path):
    """Networks that are shipped with the code must not stand in for those of a test."""
    monkeypatch.setattr("utils.prediction.networks.STARTER_DIR", tmp_path / "not shipped")


@pytest.fixture
def fake(monkeypatch) -> FakeNetworks:
    fake = FakeNetworks()
    monkeypatch.setattr(predict, "load_networks", lambda settings: fake.networks())
    return fake


def settings_for(*inputs: Path, output: Path, **changes) -> InferenceSettings:
    # A work folder of its own: networks that lie in one of the checkout must not be picked up.
    return InferenceSettings(
        inputs=inputs, **{"output": output, "work_dir": output / "work", "device": "cpu", **changes}
    )


def write_column(path: Path, axes: str = "LAS") -> Path:
    write_volume(path, oriented(column_ct(), tuple(axes)))
    return path


def mask_path(output: Path, key: str) -> Path:
    return output / "derivatives" / key.partition("_")[0] / f"{key}_seg-vert_msk.nii.gz"


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


# Command line


def test_two_inputs_of_one_name_are_told_apart_by_their_folders(tmp_path, fake, capsys):
    first, second = (write_column(tmp_path / folder / "sub-a_ct.nii.gz") for folder in ("x", "y"))
    other = write_column(tmp_path / "sub-b_ct.nii.gz")
    assert infer(settings_for(other, first, second, output=tmp_path / "out")) == 0
    error = capsys.readouterr().err
    assert str(first) in error and str(second) in error
    written = {path.name for path in (tmp_path / "out" / "derivatives").iterdir()}
    assert written == {"sub-b", "sub-x-a", "sub-y-a"}
    assert {case.key for case in index_cases(tmp_path / "out")} == {"sub-b", "sub-x-a", "sub-y-a"}


@pytest.mark.parametrize("changes", [{"first_label": "X9"}, {"fix": ("T12",)}, {"fix": ("1=T1", "1=T2")}])
def test_a_wrong_option_ends_with_status_2(tmp_path, fake, capsys, changes):
    scan = write_column(tmp_path / "sub-a_ct.nii.gz")
    assert infer(settings_for(scan, output=tmp_path / "out", **changes)) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert fake.patches == 0


def test_the_script_answers_a_wrong_command_line_without_tensorflow(tmp_path):
    command = "import sys, runpy; sys.argv = ['infer.py']\n"
    command += "try: runpy.run_path('infer.py', run_name='__main__')\n"
    command += "except SystemExit as end: print(end.code, 'tensorflow' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.split() == ["2", "False"]
    assert "expected at least one scan or folder" in result.stderr


# Cases


def test_a_folder_is_predicted_on_its_native_grids(tmp_path, fake, capsys):
    write_column(tmp_path / "in" / "sub-a_ct.nii.gz", "LAS")
    write_column(tmp_path / "in" / "sub-b_dir-ax_ct.nii.gz", "PIR")
    out = tmp_path / "out"
    assert infer(settings_for(tmp_path / "in", output=out, first_label="T10")) == 0
    expected = np.where(column().data > 0, column().data + 16, 0)
    for key, axes in (("sub-a", "LAS"), ("sub-b_dir-ax", "PIR")):
        mask = read_mask(mask_path(out, key))
        turned = oriented(Volume(expected.astype(np.uint8), AFFINE), tuple(axes))
        np.testing.assert_array_equal(mask.data, turned.data)
        np.testing.assert_allclose(mask.affine, turned.affine)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sub-")]
    assert [line.partition(", ")[0] for line in lines] == ["sub-a: 6 vertebrae", "sub-b_dir-ax: 6 vertebrae"]
    assert all(line.endswith(" s") for line in lines)


def test_what_is_known_about_a_case_is_written_with_it(tmp_path, fake):
    out = tmp_path / "out"
    no_air = column_ct().data.clip(0)
    write_volume(tmp_path / "in" / "sub-b_ct.nii.gz", Volume(no_air, AFFINE))
    write_column(tmp_path / "in" / "sub-a_ct.nii.gz")
    for key, axes, warnings in (("sub-a", "LAS", []), ("sub-b", "PRI", ["hu doubt"])):
        before = fake.patches
        infer(settings_for(tmp_path / "in" / f"{key}_ct.nii.gz", output=out, first_label="T10"))
        quality = read_quality(out / "derivatives" / key / f"{key}_quality.json")
        assert (quality.case, quality.kind, quality.anchor) == (key, "anatomical", "given")
        assert [remark.kind for remark in quality.warnings] == warnings
        assert (quality.papers.form, quality.papers.orientation) == ("NIfTI", axes)
        assert bool(quality.papers.hu_doubt) == bool(warnings)
        assert quality.network_calls == fake.patches - before == 6 and quality.seconds > 0
    empty = tmp_path / "in" / "sub-empty_ct.nii.gz"
    write_volume(empty, Volume(np.full((40, 44, 84), -1000, np.int16), AFFINE))
    infer(settings_for(empty, output=out))
    quality = read_quality(out / "derivatives" / "sub-empty" / "sub-empty_quality.json")
    assert quality.warnings == (Remark("nothing found", None, "no vertebra found"),)


def test_the_report_is_written_after_a_run_also_if_every_scan_was_done(tmp_path, fake, capsys):
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out)) == 0
    assert not (out / "report.html").exists()
    patches = fake.patches
    assert infer(settings_for(scan, output=out, report=True)) == 0
    assert fake.patches == patches  # the report alone is no reason to do a case again
    assert '<div class="key">sub-a</div>' in (out / "report.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.splitlines()[-1] == f"{out / 'report.html'}: open it in a browser."


def test_the_steps_of_the_walk_are_written_where_asked(tmp_path, fake):
    scan = write_column(tmp_path / "sub-a_ct.nii.gz")
    assert infer(settings_for(scan, output=tmp_path / "plain")) == 0
    assert not list((tmp_path / "plain").rglob("*.jsonl"))
    fake.patches = 0
    assert infer(settings_for(scan, output=tmp_path / "traced", trace=True)) == 0
    (path,) = (tmp_path / "traced").rglob("sub-a_trace.jsonl")
    steps = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum(step["words"].endswith("accepted") for step in steps) == 6
    assert max(step["call"] or 0 for step in steps) == fake.patches


def test_bad_scans_are_named_and_do_not_stop_the_folder(tmp_path, fake, capsys):
    folder, good = tmp_path / "in", column_ct()
    write_column(folder / "good.nii.gz")
    whole = (folder / "good.nii.gz").read_bytes()
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.nii.gz").touch()
    (folder / "text.nii.gz").write_text("no image")
    (folder / "zipped-text.nii.gz").write_bytes(gzip.compress(b"no image"))
    write_volume(folder / "nan.nii.gz", Volume(np.full((9, 9, 9), np.nan, np.float32), AFFINE))
    nibabel.save(nibabel.Nifti1Image(good.data[..., None].repeat(2, -1), AFFINE), folder / "4d.nii.gz")
    flat = nibabel.Nifti1Image(good.data, None)
    flat.header["pixdim"][1:4] = 0
    nibabel.save(flat, folder / "spacing.nii.gz")
    bad = ("truncated", "empty", "text", "zipped-text", "nan", "4d", "spacing")
    out = tmp_path / "out"
    assert infer(settings_for(folder, tmp_path / "missing.nii.gz", output=out)) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bad scan")]
    assert len(errors) == len(bad) + 1
    for name in (*bad, "missing"):
        assert sum(f"/{name}.nii.gz:" in line for line in errors) == 1, name
    assert [path.name for path in out.rglob("*_msk.nii.gz")] == ["sub-good_seg-vert_msk.nii.gz"]
    assert infer(settings_for(folder, output=out, skip_bad=True)) == 0


def test_only_bad_inputs_need_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "load_networks", lambda settings: pytest.fail("networks were loaded"))
    assert infer(settings_for(tmp_path / "missing.nii.gz", output=tmp_path / "out")) == 1


def test_an_unexpected_error_is_one_line_too(tmp_path, fake, capsys, monkeypatch):
    def broken(ct):
        raise RuntimeError("out of memory\nmany\nmore lines")

    monkeypatch.setattr(fake, "heat", broken)
    scan = write_column(tmp_path / "sub-a_ct.nii.gz")
    assert infer(settings_for(scan, output=tmp_path / "out")) == 1
    assert f"bad scan: {scan}: RuntimeError: out of memory\n" in capsys.readouterr().err


def test_a_rerun_does_only_what_is_not_done(tmp_path, fake, capsys):
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out)) == 0
    calls = fake.patches
    assert infer(settings_for(scan, output=out, seed=1)) == 0
    assert fake.patches == calls and "sub-a: already predicted" in capsys.readouterr().out
    mask_path(out, "sub-a").unlink()  # as a run leaves it that is killed before the mask
    assert infer(settings_for(scan, output=out)) == 0
    assert fake.patches == 2 * calls
    assert infer(settings_for(scan, output=out, first_label="L1")) == 0
    assert fake.patches == 3 * calls
    write_column(scan, "PIR")  # another scan of the same name
    assert infer(settings_for(scan, output=out, first_label="L1")) == 0
    assert fake.patches == 4 * calls


# What a prediction is known by


def changed_under_its_time(scan: Path) -> None:
    """Change voxels of an uncompressed scan; path, size and time of change stay."""
    before = scan.stat()
    with scan.open("r+b") as stream:
        stream.seek(-2000, 2)
        stream.write(bytes(2000))
    os.utime(scan, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = scan.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_a_touched_copied_or_moved_scan_is_not_predicted_again(tmp_path, fake, capsys):
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out)) == 0
    calls = fake.patches
    os.utime(scan, ns=(1, 1))
    (tmp_path / "copy").mkdir()
    (tmp_path / "moved").mkdir()
    copy = Path(shutil.copy(scan, tmp_path / "copy"))
    for place in (scan, copy, tmp_path / "moved" / scan.name):
        if not place.exists():
            scan.rename(place)
        assert infer(settings_for(place, output=out)) == 0
        assert fake.patches == calls and "sub-a: already predicted" in capsys.readouterr().out


def test_a_scan_of_another_content_is_predicted_again_whatever_its_size_and_time_say(tmp_path, fake):
    scan, out = write_column(tmp_path / "sub-a_ct.nii"), tmp_path / "out"
    assert infer(settings_for(scan, output=out)) == 0
    calls = fake.patches
    changed_under_its_time(scan)
    assert infer(settings_for(scan, output=out)) == 0
    assert fake.patches == 2 * calls


def test_a_scan_that_changes_while_it_is_read_is_predicted_again(tmp_path, fake, monkeypatch):
    scan, out = write_column(tmp_path / "sub-a_ct.nii"), tmp_path / "out"
    read = one_scan.read_scan

    def read_and_change(path, series=(), **options):
        ct = read(path, series, **options)
        changed_under_its_time(scan)
        return ct

    with monkeypatch.context() as patch:
        patch.setattr(one_scan, "read_scan", read_and_change)
        assert infer(settings_for(scan, output=out)) == 0
    calls = fake.patches
    assert infer(settings_for(scan, output=out)) == 0
    assert fake.patches == 2 * calls


def test_a_prediction_that_holds_no_hash_of_its_scan_is_made_again(tmp_path, fake, capsys):
    """Earlier versions kept path, size and time alone, which do not say what was read."""
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out)) == 0
    calls, path = fake.patches, mask_path(out, "sub-a").with_name("sub-a_settings.json")
    stat = scan.stat()
    older = {"path": str(scan), "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}
    path.write_text(json.dumps({**json.loads(path.read_text()), "scan": older}))
    assert infer(settings_for(scan, output=out, relabel=True, first_label="L1")) == 1
    assert f"{scan}: expected the scan that the prediction in {out} is of" in capsys.readouterr().err
    assert infer(settings_for(scan, output=out)) == 0
    assert fake.patches == 2 * calls
    path.write_text("[]")
    assert infer(settings_for(scan, output=out)) == 0
    assert fake.patches == 3 * calls


def test_a_report_that_cannot_be_written_is_one_line(tmp_path, fake, capsys):
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    (out / "report.html").mkdir(parents=True)
    assert infer(settings_for(scan, output=out, report=True)) == 1
    said = f"error: {out / 'report.html'}: expected to write it, found: Is a directory."
    assert said in capsys.readouterr().err.splitlines()
    assert mask_path(out, "sub-a").is_file()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\x00\xff", "expected the table of a case, found: 'utf-8' codec"),
        (b"name\nL1\n", "expected a table with the columns label, found none."),
        (b"label\nL1\n", "expected labels that are numbers, found invalid literal"),
    ],
)
def test_a_table_that_cannot_be_relabelled_is_named(tmp_path, fake, capsys, content, found):
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out)) == 0
    table = mask_path(out, "sub-a").with_name("sub-a_vertebrae.csv")
    table.write_bytes(content)
    assert infer(settings_for(scan, output=out, relabel=True, first_label="T9")) == 1
    assert f"{table}: {found}" in capsys.readouterr().err


def test_a_finished_case_with_a_damaged_file_is_done_again_and_says_so(tmp_path, fake, capsys):
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out)) == 0
    calls, mask = fake.patches, mask_path(out, "sub-a")
    settings, picture = (mask.with_name(f"sub-a{end}") for end in ("_settings.json", "_seg-vert_snp.png"))
    before = {path: path.read_bytes() for path in (mask, picture)}
    for path in (mask, picture):
        path.write_bytes(before[path][: len(before[path]) // 2])
    capsys.readouterr()
    assert infer(settings_for(scan, output=out)) == 0
    said = f"warning: {scan}: done again, as {picture.name}, {mask.name} did not hold what was written."
    assert said in capsys.readouterr().err.splitlines()
    assert fake.patches == 2 * calls and read_mask(mask).data.any()
    assert infer(settings_for(scan, output=out)) == 0
    assert fake.patches == 2 * calls and "sub-a: already predicted" in capsys.readouterr().out
    known = json.loads(settings.read_text())
    del known["files"]  # as earlier versions wrote it
    settings.write_text(json.dumps(known))
    picture.unlink()
    assert infer(settings_for(scan, output=out)) == 0
    assert fake.patches == 2 * calls


def test_files_of_an_older_prediction_do_not_stay_beside_a_new_one(tmp_path, fake):
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    every = {"trace": True, "formats": ("seg.nrrd", "itksnap"), "measure": True}
    assert infer(settings_for(scan, output=out, **every)) == 0
    usual = {"_seg-vb_ctd.json", "_seg-vert_msk.nii.gz", "_seg-vert_snp.png"}
    usual |= {"_settings.json", "_vertebrae.csv", "_quality.json", "_column.json"}
    optional = {"_trace.jsonl", "_seg-vert_msk.seg.nrrd", "_labels.txt"}
    optional |= {"_seg-body_msk.nii.gz", "_measurements.csv", "_angles.json"}

    def ends() -> set[str]:
        return {path.name.removeprefix("sub-a") for path in mask_path(out, "sub-a").parent.iterdir()}

    assert ends() == usual | optional
    assert infer(settings_for(scan, output=out)) == 0
    assert ends() == usual


def test_the_steps_of_the_walk_stay_where_only_labels_change(tmp_path, fake, capsys):
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out, trace=True)) == 0
    trace = mask_path(out, "sub-a").with_name("sub-a_trace.jsonl")
    before = trace.read_text()
    assert infer(settings_for(scan, output=out, relabel=True, first_label="L1")) == 0
    assert trace.read_text() == before
    capsys.readouterr()
    assert infer(settings_for(scan, output=out, trace=True, first_label="L1")) == 0
    assert "sub-a: already predicted" in capsys.readouterr().out


# Without a spine, or with a part of it


def test_a_scan_without_a_spine_has_all_files_a_warning_and_status_0(tmp_path, fake, capsys):
    scan, out = tmp_path / "air.nii.gz", tmp_path / "out"
    write_volume(scan, Volume(np.full((20, 20, 20), -1000, np.int16), AFFINE))
    assert infer(settings_for(scan, output=out, first_label="L1", fix=("3=L3",))) == 0
    said = capsys.readouterr()
    assert f"warning: {scan}: no vertebra found." in said.err and "sub-air: 0 vertebrae" in said.out
    assert fake.patches == 0
    mask = mask_path(out, "sub-air")
    assert read_mask(mask).shape == (20, 20, 20) and not read_mask(mask).data.any()
    assert mask.with_name("sub-air_vertebrae.csv").read_text().count("\n") == 1  # the names of the columns
    assert json.loads(mask.with_name("sub-air_seg-vb_ctd.json").read_text())[1:] == []
    assert mask.with_name("sub-air_seg-vert_snp.png").stat().st_size > 0
    assert json.loads(mask.with_name("sub-air_column.json").read_text())["vertebrae"] == []
    quality = read_quality(mask.with_name("sub-air_quality.json"))
    assert quality.no_spine and quality.sequences == () and quality.sequence_probability is None
    assert quality.warnings == (Remark("nothing found", None, "no vertebra found"),)
    assert infer(settings_for(scan, output=out, relabel=True, first_label="L1")) == 0
    assert read_quality(mask.with_name("sub-air_quality.json")).no_spine


def test_a_scan_too_flat_for_a_vertebra_is_said_to_be_so_without_any_network(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict, "load_networks", lambda settings: pytest.fail("loaded"))
    scan, out = tmp_path / "slice.nii.gz", tmp_path / "out"
    write_volume(scan, Volume(np.full((40, 40, 1), -1000, np.int16), np.diag([-1.0, -1, 2.5, 1])))
    assert infer(settings_for(scan, output=out)) == 0
    said = f"warning: {scan}: no vertebra found: it is 2.5 mm thick, and a spine needs 10 mm."
    assert said in capsys.readouterr().err
    mask = mask_path(out, "sub-slice")
    assert read_mask(mask).shape == (40, 40, 1) and not read_mask(mask).data.any()
    assert read_quality(mask.with_name("sub-slice_quality.json")).no_spine
    assert mask.with_name("sub-slice_vertebrae.csv").read_text().count("\n") == 1
    assert infer(settings_for(scan, output=out)) == 0
    assert "sub-slice: already predicted" in capsys.readouterr().out


def test_a_scan_larger_than_it_may_be_is_refused_with_the_option_that_allows_it(tmp_path, fake, capsys):
    scan, out = write_column(tmp_path / "a.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out, max_gigabytes=1e-4)) == 1
    error = capsys.readouterr().err
    assert f"bad scan: {scan}: expected a scan of at most 0.0001 GB (--max-gigabytes), found one of" in error
    assert not mask_path(out, "sub-a").exists() and infer(settings_for(scan, output=out)) == 0


def test_hostile_headers_are_bad_scans_and_the_one_beside_them_is_predicted(tmp_path, fake, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    scan = write_column(folder / "z.nii.gz")
    hostile = {
        "a.mha": meta(NDims="-1"),
        "b.mhd": meta(b"", ElementDataFile="%d%n%s 0 6 1"),
        "c.nhdr": nrrd_bytes(b"", data_file="pipe"),
        "d.nhdr": nrrd_bytes(b"", data_file="/dev/zero"),
        "e.nrrd": b"NRRD0004\n" + b"type: %" * 2**17,
    }
    for name, content in hostile.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe")
    assert infer(settings_for(folder, output=out)) == 1
    error = capsys.readouterr().err
    for name in ("a.mha", "b.mhd", "d.nhdr", "e.nrrd"):
        assert f"bad scan: {folder / name}: expected" in error
    assert f"{folder / 'pipe'}: expected the voxels of c.nhdr, found no regular file." in error
    assert error.count("bad scan") == len(hostile) and "Traceback" not in error
    assert mask_path(out, "sub-z").is_file() and scan.is_file()


@pytest.mark.parametrize("error", ["tensorflow", "python"])
def test_memory_that_runs_out_is_one_line_and_ends_no_other_scan(tmp_path, fake, capsys, error):
    import tensorflow as tf

    raised = tf.errors.ResourceExhaustedError(None, None, "OOM\nwhen allocating")
    given, asked = fake.patch, []

    def once(ct, memory):
        asked.append(1)
        if len(asked) == 1:
            raise raised if error == "tensorflow" else MemoryError
        return given(ct, memory)

    fake.patch = once
    paths = [write_column(tmp_path / f"sub-{name}_ct.nii.gz") for name in "ab"]
    assert infer(settings_for(*paths, output=tmp_path / "out")) == 1
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "memory" in text]
    assert line.startswith("bad scan: ") and "sub-a" in line and "--device cpu --workers 1" in line
    assert mask_path(tmp_path / "out", "sub-b").is_file()


def test_weak_heat_is_no_spine(tmp_path, fake):
    strong, fake.strength = fake.heat, 0.0
    fake.heat = lambda ct: strong(ct) * np.float32(0.3)
    scan = predict.find_scans((write_column(tmp_path / "sub-a_ct.nii.gz"),)).scans[0]
    case, warning = one_scan.predict_case(scan, fake.networks(), settings_for(scan.path, output=tmp_path))
    assert case.quality.no_spine and warning == "no vertebra found" and fake.patches == 0
    # Peaks that are no spine are not said to be vertebrae anywhere.
    assert json.loads(case.column)["vertebrae"] == []


def test_a_vertebra_found_but_not_outlined_is_a_gap_and_its_vote_counts(tmp_path, monkeypatch):
    fake = FakeNetworks(silent=(3,))
    scan = predict.find_scans((write_column(tmp_path / "sub-a_ct.nii.gz"),)).scans[0]
    settings = settings_for(scan.path, output=tmp_path)
    case, warning = one_scan.predict_case(scan, fake.networks(), settings)
    assert [row["name"] for row in case.table] == ["T10", "T11", "L1", "L2", "L3"] and warning == ""
    gaps = [remark for remark in case.quality.warnings if remark.kind == "gap"]
    assert gaps == [Remark("gap", "T11", "a vertebra was found below T11, but could not be outlined")]
    assert not case.quality.no_spine
    labels = [row["label"] for row in json.loads(case.column)["vertebrae"]]
    assert labels == [17, 18, 0, 20, 21, 22]


def test_places_that_are_fixed_are_counted_among_the_vertebrae_found(tmp_path):
    fake = FakeNetworks(silent=(1, 3), strength=0.5)
    scan = predict.find_scans((write_column(tmp_path / "sub-a_ct.nii.gz"),)).scans[0]
    settings = settings_for(scan.path, output=tmp_path, fix=("2=L2",))  # the fourth of the column
    case, _ = one_scan.predict_case(scan, fake.networks(), settings)
    assert [row["name"] for row in case.table] == ["T12", "L2", "L3", "L4"]
    assert case.identification.anchor == "given"


# A published heatmap network


@pytest.fixture
def published(monkeypatch) -> FakeNetworks:
    published = FakeNetworks(is_published=True)
    monkeypatch.setattr(predict, "load_networks", lambda settings: published.networks("paper"))
    return published


def test_a_published_heatmap_network_counts(tmp_path, published, capsys):
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out)) == 0
    assert "6 vertebrae" in capsys.readouterr().out
    found = read_mask(mask_path(out, "sub-a"))
    np.testing.assert_array_equal(oriented(found).data, column().data)
    quality = read_quality(mask_path(out, "sub-a").with_name("sub-a_quality.json"))
    assert (quality.kind, quality.anchor, quality.sequences) == ("count", None, None)
    assert not mask_path(out, "sub-a").with_name("sub-a_column.json").exists()
    assert infer(settings_for(scan, output=out)) == 0
    assert "sub-a: already predicted" in capsys.readouterr().out


def test_more_vertebrae_than_labels_is_a_warning(tmp_path, published, capsys):
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out, first_label="L3")) == 0
    assert set(np.unique(read_mask(mask_path(out, "sub-a")).data)) == {0, 22, 23, 24, 25}
    assert "6 vertebrae found, but VerSe has 4 labels from L3 down" in capsys.readouterr().err


def test_a_published_walk_without_heat_finds_nothing(tmp_path, published, capsys):
    write_volume(tmp_path / "air.nii.gz", Volume(np.full((20, 20, 20), -1000, np.int16), AFFINE))
    assert infer(settings_for(tmp_path / "air.nii.gz", output=tmp_path / "out", first_label="L1")) == 0
    assert "no vertebra found" in capsys.readouterr().err
    quality = mask_path(tmp_path / "out", "sub-air").with_name("sub-air_quality.json")
    assert read_quality(quality).no_spine


# Reading ahead


@pytest.fixture
def read_names(monkeypatch) -> list[str]:
    """Names of the scans that are read, in this order."""
    names, read = [], one_scan.read_scan

    def read_and_note(path, series=(), **options):
        names.append(path.name)
        return read(path, series, **options)

    monkeypatch.setattr(one_scan, "read_scan", read_and_note)
    return names


def test_the_next_scan_is_read_while_one_is_predicted(tmp_path, fake, read_names):
    for key in "abc":
        write_column(tmp_path / "in" / f"{key}.nii.gz")
    seen, heat = [], fake.heat

    def slow(ct):
        deadline = time.monotonic() + 20
        while len(read_names) < min(len(seen) + 2, 3) and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(list(read_names))
        return heat(ct)

    fake.heat = slow
    assert infer(settings_for(tmp_path / "in", output=tmp_path / "out")) == 0
    names = ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert seen == [names[:2], names, names]


def test_done_scans_are_not_read(tmp_path, fake, read_names):
    scans = [write_column(tmp_path / f"{key}.nii.gz") for key in "abc"]
    assert infer(settings_for(scans[0], output=tmp_path / "out")) == 0
    read_names.clear()
    assert infer(settings_for(*scans, output=tmp_path / "out")) == 0
    assert read_names == ["b.nii.gz", "c.nii.gz"]


def test_without_memory_for_two_scans_nothing_is_read_ahead(tmp_path, fake, read_names, monkeypatch):
    scans = [write_column(tmp_path / f"{key}.nii.gz") for key in "ab"]
    seen, heat = [], fake.heat
    fake.heat = lambda ct: seen.append(list(read_names)) or heat(ct)
    monkeypatch.setattr("utils.execution.free_memory_bytes", lambda: 2**20)
    assert infer(settings_for(*scans, output=tmp_path / "out")) == 0
    assert seen == [["a.nii.gz"], ["a.nii.gz", "b.nii.gz"]]


def test_a_scan_that_cannot_be_read_is_the_one_named(tmp_path, fake, capsys):
    scans = [write_column(tmp_path / f"{key}.nii.gz") for key in "abc"]
    scans[1].write_text("no image")
    assert infer(settings_for(*scans, output=tmp_path / "out")) == 1
    said = capsys.readouterr()
    assert said.err.count("bad scan") == 1 and f"bad scan: {scans[1]}: expected" in said.err
    done = [line.partition(":")[0] for line in said.out.splitlines() if line.startswith("sub-")]
    assert done == ["sub-a", "sub-c"]


# Formats


def dicom_ct() -> Volume:
    """The column as a scanner stacks it: the third axis is the cross product of the first two."""
    return oriented(column_ct(), ("L", "P", "S"))


def test_a_dicom_series_gives_the_mask_of_the_same_volume_as_nifti(tmp_path, fake, capsys):
    ct, out = dicom_ct(), tmp_path / "out"
    names = [f"{place % 4}/IM{(5 * place) % ct.shape[2]:03}" for place in range(ct.shape[2])]
    write_series(tmp_path / "in", ct, names=names, SeriesDescription="Bone")
    write_series(tmp_path / "in" / "mr", ct, names=names, Modality="MR", SeriesNumber=4)
    write_volume(tmp_path / "twin.nii.gz", ct)
    key, inputs = "sub-P01_series-3_desc-Bone", (tmp_path / "in", tmp_path / "twin.nii.gz")
    assert infer(settings_for(*inputs, output=out)) == 0
    assert f"{tmp_path / 'in' / 'mr'}: series 4: skipped: modality MR, not CT." in capsys.readouterr().err
    found, expected = (read_mask(mask_path(out, name)) for name in (key, "sub-twin"))
    assert len(np.unique(found.data)) == 7
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_allclose(found.affine, expected.affine, rtol=0, atol=1e-5)
    calls = fake.patches
    assert infer(settings_for(*inputs, output=out)) == 0
    assert fake.patches == calls and f"{key}: already predicted" in capsys.readouterr().out


def test_a_series_that_is_no_even_stack_is_a_bad_scan(tmp_path, fake, capsys):
    ct = dicom_ct()
    files = write_series(tmp_path / "in", ct)
    files[30].unlink()
    assert infer(settings_for(tmp_path / "in", output=tmp_path / "out")) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bad scan")]
    assert f"{tmp_path / 'in'}: series 3: expected slices 2.00 mm apart" in line and "IM0031" in line


def test_a_prediction_of_another_scan_is_kept_and_a_rerun_finds_its_own(tmp_path, fake, capsys):
    first, second = tmp_path / "one" / "sub-a_ct.nii.gz", tmp_path / "two" / "sub-a_ct.nii.gz"
    out = tmp_path / "out"
    for scan, orientation in ((first, "RAS"), (second, "PIR")):
        scan.parent.mkdir()
        write_column(scan, orientation)
        assert infer(settings_for(scan, output=out)) == 0
    key = f"sub-a_hash-{sha256_of(second)[:8]}"
    assert f"sub-a is the name of several scans: {second} as {key}." in capsys.readouterr().err
    for scan, own in ((first, "sub-a"), (second, key)):
        calls = fake.patches
        assert infer(settings_for(scan, output=out)) == 0
        assert fake.patches == calls and f"{own}: already predicted" in capsys.readouterr().out
        assert mask_path(out, own).is_file()


def test_numbers_that_cannot_be_hu_are_a_warning(tmp_path, fake, capsys):
    stored = column_ct().data.astype(np.int32) + 1024
    write_volume(tmp_path / "sub-a_ct.nii.gz", Volume(stored, AFFINE))
    assert infer(settings_for(tmp_path / "sub-a_ct.nii.gz", output=tmp_path / "out")) == 0
    error = capsys.readouterr().err
    assert f"warning: {tmp_path / 'sub-a_ct.nii.gz'}: values from 24 to 2224, probably not rescaled" in error


def test_a_format_wanted_later_is_made_from_the_mask(tmp_path, fake, capsys):
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    files = [
        mask_path(out, "sub-a").with_name(f"sub-a{end}") for end in ("_seg-vert_msk.seg.nrrd", "_labels.txt")
    ]
    formats = {"formats": ("seg.nrrd", "itksnap"), "first_label": "T10"}
    assert infer(settings_for(scan, output=out, first_label="T10")) == 0
    assert not any(file.exists() for file in files)
    calls = fake.patches
    capsys.readouterr()
    assert infer(settings_for(scan, output=out, **formats)) == 0
    assert "sub-a: already predicted, now also as seg.nrrd, itksnap\n" in capsys.readouterr().out
    later = [file.read_text() if file.suffix == ".txt" else nrrd.read(str(file)) for file in files]
    assert fake.patches == calls
    mask_path(out, "sub-a").unlink()
    assert infer(settings_for(scan, output=out, **formats)) == 0
    assert fake.patches == 2 * calls and files[1].read_text() == later[1]
    data, header = nrrd.read(str(files[0]))
    np.testing.assert_array_equal(data, later[0][0])
    assert str(header) == str(later[0][1]) and header["Segment0_Name"] == "T10"


def test_measures_wanted_later_are_made_from_the_mask(tmp_path, fake, capsys):
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out, first_label="T10")) == 0
    calls, wanted = fake.patches, {"first_label": "T10", "measure": True}
    capsys.readouterr()
    assert infer(settings_for(scan, output=out, **wanted)) == 0
    assert "sub-a: already predicted, now also as measures\n" in capsys.readouterr().out
    ends = ("_measurements.csv", "_angles.json", "_seg-body_msk.nii.gz")
    files = [mask_path(out, "sub-a").with_name(f"sub-a{end}") for end in ends]
    later = [file.read_bytes() for file in files[:2]]
    table = pd.read_csv(files[0])
    assert table["name"].tolist() == ["T10", "T11", "T12", "L1", "L2", "L3"]
    assert fake.patches == calls
    assert infer(settings_for(scan, output=out, **wanted)) == 0
    assert "already predicted\n" in capsys.readouterr().out
    mask_path(out, "sub-a").unlink()
    assert infer(settings_for(scan, output=out, **wanted)) == 0
    assert fake.patches == 2 * calls and [file.read_bytes() for file in files[:2]] == later
    assert infer(settings_for(scan, output=out, relabel=True, first_label="L1")) == 0
    assert pd.read_csv(files[0])["name"].tolist() == ["L1", "L2", "L3", "L4", "L5", "L6"]


# Networks


def save_model(directory: Path, shape: tuple[int, ...], outputs: int, **facts) -> Path:
    """A network of one 1 x 1 x 1 convolution that gives sigmoid of the sum of its channels, or softmax."""
    import keras

    activation = "sigmoid" if outputs == 1 else "softmax"
    image = keras.Input(shape)
    layer = keras.layers.Conv3D(outputs, 1, activation=activation, kernel_initializer="ones")
    directory.mkdir(parents=True)
    keras.Model(image, layer(image)).save(directory / "best.keras")
    (directory / "settings.json").write_text(json.dumps(facts))
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("work")
    save_model(
        work / "models" / "segmentation", (8, 8, 8, 2), 1, spacing_mm=2.0, preset="small", patch_voxels=8
    )
    save_model(work / "models" / "heatmap", (4, 5, 6, 1), 2, spacing_mm=2.0, preset="small")
    save_model(work / "other" / "heatmap", (4, 5, 6, 1), 2, spacing_mm=1.0, preset="full")
    save_model(work / "unnamed", (8, 8, 8, 2), 1, preset="full")
    return work


def test_networks_are_loaded_as_functions_on_arrays(models, tmp_path):
    loaded = load_networks(InferenceSettings(work_dir=models))
    assert (loaded.heatmap_shape, loaded.patch_voxels) == ((4, 5, 6), 8)
    assert (loaded.spacing_mm, loaded.preset) == (2.0, "small")
    ct, memory = np.full((8, 8, 8), 0.25, np.float32), np.ones((8, 8, 8), np.float32)
    np.testing.assert_allclose(loaded.patch(ct, memory), 1 / (1 + np.exp(-1.25)), rtol=1e-5)
    heat = loaded.heat(np.zeros((4, 5, 6), np.float32))
    assert heat.shape == (4, 5, 6)
    np.testing.assert_allclose(heat, 0.5)


@pytest.mark.parametrize(("saved", "outside"), [({}, "edge"), ({"outside": "air"}, "air")])
def test_the_walk_shows_what_the_training_showed_beyond_the_scan(models, tmp_path, saved, outside):
    # A model of before this was a setting has nothing of it in its settings.
    own = save_model(tmp_path / "own", (8, 8, 8, 2), 1, spacing_mm=2.0, preset="small", **saved)
    found = load_networks(InferenceSettings(segmentation=own, heatmap=models / "models" / "heatmap"))
    assert found.outside == outside
    assert WalkSettings(**found.walk).outside == outside


def test_a_model_with_something_else_beyond_the_scan_is_refused(models, tmp_path):
    own = save_model(tmp_path / "own", (8, 8, 8, 2), 1, spacing_mm=2.0, preset="small", outside="water")
    with pytest.raises(ValueError, match=r"settings.json: expected outside to be .*, found 'water'"):
        load_networks(InferenceSettings(segmentation=own, heatmap=models / "models" / "heatmap"))


def test_loaded_networks_give_what_the_trained_ones_give(tmp_path):
    import keras

    from utils.learning.models import build_heatmap_network, build_segmentation_network
    from utils.settings import HeatmapTrainingSettings, SegmentationTrainingSettings

    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(3)
    trained = {
        "segmentation": build_segmentation_network(
            SegmentationTrainingSettings(filters=(2, 3), patch_voxels=8)
        ),
        "heatmap": build_heatmap_network(HeatmapTrainingSettings(target="spine", filters=(2, 3)), (4, 6, 8)),
    }
    for name, network in trained.items():
        for weight in network.weights:
            if "moving" in weight.path:
                weight.assign(rng.uniform(0.2, 2, weight.shape))
        (tmp_path / "models" / name).mkdir(parents=True)
        network.save(tmp_path / "models" / name / "best.keras")
        (tmp_path / "models" / name / "settings.json").write_text(json.dumps({"spacing_mm": 2.0}))
    loaded = load_networks(InferenceSettings(work_dir=tmp_path))
    patch = rng.normal(size=(8, 8, 8, 2)).astype(np.float32)
    small = rng.normal(size=(4, 6, 8)).astype(np.float32)
    expected = trained["segmentation"](patch[None]).numpy()[0, ..., 0]
    np.testing.assert_allclose(loaded.patch(patch[..., 0], patch[..., 1]), expected, atol=1e-5)
    expected = trained["heatmap"](small[None, ..., None]).numpy()[0, ..., 0]
    np.testing.assert_allclose(loaded.heat(small), expected, atol=1e-5)


@pytest.fixture(scope="module")
def finders(models) -> dict[str, Path]:
    """Directories of a network that finds vertebrae, one that labels them, and one that segments them."""
    import keras

    from utils.learning.models import (
        build_labelling_network,
        build_localiser,
        build_segmentation_network,
        save_weights,
    )
    from utils.settings import (
        HeatmapTrainingSettings,
        LabellingTrainingSettings,
        SegmentationTrainingSettings,
        save_settings,
    )

    keras.utils.set_random_seed(3)
    heatmap = HeatmapTrainingSettings(filters=(2, 3, 4), crop_voxels=(8, 8, 8))
    labelling = LabellingTrainingSettings(filters=(2, 3), patch_voxels=6, none_share=0.4)
    found = {}
    segmentation = SegmentationTrainingSettings(filters=(2, 3), patch_voxels=8)
    for name, settings, build in (
        ("heatmap", heatmap, build_localiser),
        ("labelling", labelling, build_labelling_network),
        ("segmentation", segmentation, build_segmentation_network),
    ):
        found[name] = models / "finders" / name
        facts = {"spacing_mm": 2.0} if name == "segmentation" else {}
        save_settings(settings, found[name], temperature=1.5 if name == "labelling" else 9.0, **facts)
        save_weights(build(settings), found[name])
    return found


def test_a_network_that_finds_vertebrae_takes_whole_scans_of_any_shape(finders):
    from utils.learning.models import load_model

    loaded = load_networks(InferenceSettings(**finders))  # at 3 mm, and the segmentation network at 2
    assert (loaded.finds_centres, loaded.heatmap_mm, loaded.spacing_mm) == (True, 3.0, 2.0)
    trained, settings = load_model(finders["heatmap"])
    assert (loaded.heatmap_outside, loaded.temperature) == (settings["outside"], 1.5)
    assert sorted(loaded.origin) == ["heatmap", "labelling", "segmentation"]
    ct = np.random.default_rng(3).normal(size=(8, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(loaded.heat(ct), trained(ct[None, ..., None])[0], atol=1e-5)
    assert loaded.heat(np.zeros((16, 8, 32), np.float32)).shape == (16, 8, 32, 2)


@pytest.mark.parametrize("count", [1, 16, 21])
def test_a_labelling_network_is_asked_at_any_number_of_points(finders, count):
    from utils.imaging.intensities import normalise_hu
    from utils.learning.models import load_model

    generator = np.random.default_rng(3)
    ct = Volume(generator.integers(-1000, 2000, (9, 10, 11)).astype(np.int16), AFFINE)
    points = generator.uniform(-1, 10, (count, 3))
    found = load_networks(InferenceSettings(**finders)).labels(ct, points)
    trained, _ = load_model(finders["labelling"])
    patches = patches_at(ct, points, edge=6, outside="air")
    expected = trained(normalise_hu(patches)[..., None]).numpy()
    assert found.level_logits.dtype == np.float64
    np.testing.assert_allclose(found.level_logits[:, 1:], expected[:, 1:27], atol=1e-4)
    np.testing.assert_allclose(found.rib_logits, expected[:, 27], atol=1e-4)
    np.testing.assert_allclose(found.ways_voxels, expected[:, 28:], atol=1e-4)
    # None had a share of .4 in training, each level .6 / 26.
    np.testing.assert_allclose(found.level_logits[:, 0] - expected[:, 0], np.log(0.6 / 26 / 0.4), atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"labelling": "heatmap"}, "expected a labelling network"), ({}, "expected the spacing of the heatmap")],
)
def test_a_labelling_network_that_does_not_fit_is_refused(finders, tmp_path, changed, message):
    directories = {**finders, **{name: finders[other] for name, other in changed.items()}}
    if not changed:
        directories["labelling"] = shutil.copytree(finders["labelling"], tmp_path / "labelling")
        path = directories["labelling"] / "settings.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "spacing_mm": 2.0}))
    with pytest.raises(ValueError, match=message) as error:
        load_networks(InferenceSettings(**directories))
    assert str(directories["labelling"]) in str(error.value)


def test_networks_of_two_presets_are_refused(models):
    settings = InferenceSettings(work_dir=models, heatmap=models / "other" / "heatmap")
    with pytest.raises(ValueError, match="a model of another preset") as error:
        load_networks(settings)
    assert str(models / "other" / "heatmap") in str(error.value)
    assert str(models / "models" / "segmentation") in str(error.value)


def test_a_network_of_another_kind_is_refused(models):
    with pytest.raises(ValueError, match="expected a segmentation network"):
        load_networks(InferenceSettings(work_dir=models, segmentation=models / "models" / "heatmap"))


def test_a_network_without_spacing_is_refused(models):
    with pytest.raises(ValueError, match="spacing_mm"):
        load_networks(InferenceSettings(work_dir=models, segmentation=models / "unnamed"))


def test_missing_networks_name_the_command_that_trains_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(networks, "STARTER_DIR", tmp_path / "starter")
    scan = write_column(tmp_path / "sub-a_ct.nii.gz")
    settings = settings_for(scan, output=tmp_path / "out", work_dir=tmp_path / "work")
    assert infer(settings) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert str(tmp_path / "work" / "models" / "segmentation") in line
    assert f"python train_segmentation.py --work-dir {tmp_path / 'work'}" in line
    assert not (tmp_path / "out").exists()


def test_where_networks_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "STARTER_DIR", tmp_path / "starter")
    starter, work = tmp_path / "starter", tmp_path / "work"
    touch(starter, "segmentation/best.keras", "heatmap/best.keras")
    settings = InferenceSettings(work_dir=work)
    assert networks.model_directories(settings) == (starter / "segmentation", starter / "heatmap")
    touch(work, "models/heatmap/best.keras")
    # Not a heatmap network that may belong to another preset: the one beside the segmentation network.
    assert networks.model_directories(settings) == (starter / "segmentation", starter / "heatmap")
    touch(work, "models/segmentation/best.keras")
    assert networks.model_directories(settings) == (work / "models/segmentation", work / "models/heatmap")
    named = InferenceSettings(work_dir=work, segmentation=tmp_path / "mine")
    assert networks.model_directories(named) == (tmp_path / "mine", work / "models/heatmap")


def test_where_the_labelling_network_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "STARTER_DIR", tmp_path / "starter")
    touch(tmp_path / "starter", "segmentation/best.keras", "heatmap/best.keras", "labelling/best.keras")
    settings = InferenceSettings(work_dir=tmp_path / "work", heatmap=tmp_path / "elsewhere" / "heatmap")
    assert networks.labelling_directory(settings) == tmp_path / "starter" / "labelling"
    for place in (tmp_path / "elsewhere", tmp_path / "work" / "models"):
        touch(place, "labelling/best.keras")
        assert networks.labelling_directory(settings) == place / "labelling"
    named = dataclasses.replace(settings, labelling=tmp_path / "mine")
    assert networks.labelling_directory(named) == tmp_path / "mine"


def test_the_starter_weights_are_used_where_there_is_no_other_network(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "STARTER_DIR", tmp_path / "starter")
    settings = InferenceSettings(work_dir=tmp_path / "work")
    assert not networks.uses_starter(settings)
    touch(tmp_path / "starter", "segmentation/best.keras", "heatmap/best.keras")
    assert networks.uses_starter(settings)
    assert not networks.uses_starter(dataclasses.replace(settings, segmentation=tmp_path / "mine"))
    touch(tmp_path / "work", "models/segmentation/best.keras")
    assert not networks.uses_starter(settings)


def test_the_first_line_says_that_the_starter_weights_are_used(models, tmp_path, monkeypatch, capsys):
    scan = write_column(tmp_path / "sub-a_ct.nii.gz")
    monkeypatch.setattr(networks, "STARTER_DIR", shutil.copytree(models / "models", tmp_path / "starter"))
    settings = settings_for(scan, output=tmp_path / "out", work_dir=tmp_path / "work")
    assert infer(settings) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert str(tmp_path / "work" / "models") in first and "starter weights" in first
    own = settings_for(scan, output=tmp_path / "own", work_dir=models)
    assert infer(own) == 0
    assert "starter weights" not in capsys.readouterr().out


# Several processes


def files_of(output: Path) -> dict[str, bytes]:
    """What the files hold; how long a case took, and the hash of the file that says so, are left out."""
    held = {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    timed = rb'"seconds": [0-9.]+|"_quality.json": "[0-9a-f]+"'
    return {name: re.sub(timed, b"", content) for name, content in held.items()}


def test_processes_a_cluster_and_shards_give_what_one_process_gives(models, tmp_path, scheduler, capsys):
    for key in ("sub-a", "sub-b", "sub-c"):
        write_column(tmp_path / "in" / f"{key}_ct.nii.gz")
    (tmp_path / "in" / "sub-bad_ct.nii.gz").write_text("no scan")

    def run(name, **how):
        capsys.readouterr()
        settings = settings_for(tmp_path / "in", output=tmp_path / name, work_dir=models, **how)
        assert infer(settings) == (0 if how.get("shard") == "2/2" else 1)
        return files_of(tmp_path / name), capsys.readouterr()

    alone, said = run("alone")
    assert "3 of 4 scans predicted" in said.out and "sub-bad_ct.nii.gz: expected" in said.err
    assert len(alone) == 1 + 3 * 6  # the description of the folder, and six a scan
    for how in ({"workers": 2}, {"scheduler": scheduler}):
        found, said = run("divided" + "".join(how), **how)
        assert found == alone
        assert "3 of 4 scans predicted" in said.out and "sub-bad_ct.nii.gz: expected" in said.err
    first, _ = run("shards", shard="1/2")
    # And the bad one, the third in order.
    assert {name.split("/")[0] for name in first} == {"dataset_description.json", "derivatives"}
    assert {name.split("/")[1] for name in first if "/" in name} == {"sub-a"}
    assert run("shards", shard="2/2")[0] == alone


def test_a_missing_network_is_said_once_whoever_would_load_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(networks, "STARTER_DIR", tmp_path / "starter")
    scans = [write_column(tmp_path / f"sub-{key}_ct.nii.gz") for key in "ab"]
    assert infer(settings_for(*scans, output=tmp_path / "out", work_dir=tmp_path / "work", workers=2)) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
