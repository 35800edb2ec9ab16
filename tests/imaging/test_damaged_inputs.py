"""Damaged files on the real way: read alone, and prepared by the scripts, all of them beside good cases."""

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.imaging.damage import DAMAGES, Damage, random_flips, write_whole_case
from utils.imaging.centroids import read_centroids
from utils.imaging.nifti import read_ct, read_mask, read_pair
from utils.imaging.volume import Grid
from utils.preparation.prepare import prepare_heatmap, prepare_segmentation
from utils.settings import HeatmapPreparationSettings, SegmentationPreparationSettings

ROOT = Path(__file__).resolve().parents[2]
#: No file here takes a hundredth of this; a reader that waits or fills the memory takes more.
SECONDS, BYTES = 5, 4 * 2**30
#: Text headers, unused fields and voxels may change without a trace.
FLIPS = random_flips(90)
PREPARED = ("_ct.nii", "_msk.nii", "_ctd.json", "_spine.json", "_vertebrae.csv")
STAGES = {
    "heatmap": (prepare_heatmap, HeatmapPreparationSettings),
    "segmentation": (prepare_segmentation, SegmentationPreparationSettings),
}


@contextlib.contextmanager
def within(seconds: float):
    """Fail, instead of waiting for ever, when the block takes longer."""

    def fail(*_):
        pytest.fail(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def read(damage: Damage, top: Path, path: Path) -> None:
    """Read as the stages do: the mask together with its CT, the centroids on the CT's grid."""
    ct = top / f"rawdata/sub-a01/sub-a01_ct{damage.suffix}"
    with within(SECONDS):
        if damage.role == "ct":
            read_ct(path)
        elif damage.role == "mask":
            _, mask = read_pair(ct, path)
            if not mask.data.any():
                raise ValueError(f"{path}: expected at least one vertebra, found none.")  # the stages' own
        elif len(read_centroids(path, read_ct(ct).grid).codes) == 0:
            raise ValueError(f"{path}: expected at least one vertebra, found none.")


def test_two_hundred_kinds_are_tried():
    assert len({str(damage) for damage in DAMAGES}) == 200
    assert Counter(damage.role for damage in DAMAGES) == {"ct": 93, "mask": 59, "centroids": 48}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_the_case_is_good_before_it_is_damaged(tmp_path, suffix):
    paths = write_whole_case(tmp_path, "sub-a01", suffix=suffix)
    ct, mask = read_pair(paths["ct"], paths["mask"])
    np.testing.assert_array_equal(ct.data, np.asanyarray(nibabel.load(paths["ct"]).dataobj))
    np.testing.assert_array_equal(np.unique(mask.data), [0, 19, 20])
    np.testing.assert_array_equal(read_centroids(paths["centroids"], ct.grid).codes, [19, 20])


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, capfd, recwarn, damage):
    path = damage.write(tmp_path, "sub-a01")
    with pytest.raises(ValueError, match=damage.said) as caught:
        read(damage, tmp_path, path)
    said = str(caught.value)
    assert said.startswith(f"{path}: expected ") and ", found " in said
    assert said.isprintable() and len(said) < len(str(path)) + 400
    assert not recwarn.list and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("damage", FLIPS, ids=str)
def test_random_flips_are_named_or_change_no_more_than_another_reader_sees(tmp_path, capfd, recwarn, damage):
    path = damage.write(tmp_path, "sub-a01")
    try:
        with within(SECONDS):
            found = read_ct(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: expected ") and ", found " in str(error)
    else:
        image = nibabel.load(path)
        np.testing.assert_array_equal(found.affine, image.affine)
        expected = image.get_fdata(dtype=np.float32)
        np.testing.assert_array_equal(found.data, np.where(np.isfinite(expected), expected, -1024))
    assert not recwarn.list and capfd.readouterr() == ("", "")


def test_random_flips_are_of_both_sorts(tmp_path):
    named = 0
    for number, damage in enumerate(FLIPS):
        try:
            read_ct(damage.write(tmp_path / str(number), "sub-a01"))
        except ValueError:
            named += 1
    assert 5 <= named <= len(FLIPS) - 5


# Things that are no file


def put(path: Path, thing: str) -> None:
    """Put something that cannot be read in the place of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if thing == "a folder":
        path.mkdir()
    elif thing == "a pipe":
        os.mkfifo(path)
    elif thing == "an endless device":
        path.symlink_to("/dev/zero")
    elif thing == "a link to nothing":
        path.symlink_to(path.with_name("nothing"))
    elif thing == "a link to itself":
        path.symlink_to(path.name)
    elif thing == "a file in the place of a folder":
        path.parent.rmdir()
        path.parent.write_text("")


THINGS = [
    ("a folder", "found a folder"),
    ("a pipe", "found no regular file"),
    ("an endless device", "found no regular file"),
    ("a link to nothing", "found a broken link"),
    ("a link to itself", "found a broken link"),
    ("a file in the place of a folder", "found Not a directory"),
]
READERS = {
    "x_ct.nii.gz": read_ct,
    "x_msk.nii": read_mask,
    "x_ctd.json": lambda path: read_centroids(path, Grid((3, 3, 3), np.eye(4))),
}


@pytest.mark.parametrize(("thing", "said"), THINGS, ids=[thing for thing, _ in THINGS])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_named(tmp_path, name, thing, said):
    path = tmp_path / "folder" / name
    put(path, thing)
    with within(SECONDS), pytest.raises(ValueError, match=said) as caught:
        READERS[name](path)
    assert str(caught.value).startswith(f"{path}: expected a")


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_may_not_be_read_is_named(name):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        path = Path(folder) / name
        path.write_bytes(b"content")
        path.parent.chmod(0o755)
        path.chmod(0)
        with as_anybody(), pytest.raises(ValueError, match="found Permission denied") as caught:
            READERS[name](path)
    assert str(caught.value).startswith(f"{path}: expected a")


@contextlib.contextmanager
def as_anybody():
    """Give up the rights of root, who may read every file."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("name", READERS)
def test_a_name_too_long_for_a_file_is_named(tmp_path, name):
    path = tmp_path / ("x" * 300 + name)
    with pytest.raises(ValueError, match="found File name too long"):
        READERS[name](path)


# Whole stages


GOOD = {"sub-a01": ".nii.gz", "sub-z99": ".nii"}


def write_tree(data_dir: Path, damages: Sequence[Damage] = ()) -> dict[str, Damage]:
    """Write two good cases, one in each form, and damaged ones between them; gives these by their key."""
    keys = {f"sub-d{number:03}": damage for number, damage in enumerate(damages)}
    for key, suffix in GOOD.items():
        write_whole_case(data_dir / "dataset-01training", key, suffix=suffix)
    for key, damage in keys.items():
        damage.write(data_dir / "dataset-01training", key)
    return keys


def keys_read(stage: str, keys: dict[str, Damage]) -> set[str]:
    """The cases whose damaged file a stage reads: that of segmentation needs no centroids."""
    roles = {"ct", "mask", "centroids"} if stage == "heatmap" else {"ct", "mask"}
    return {key for key, damage in keys.items() if damage.role in roles}


def damaged_file(data_dir: Path, key: str, damage: Damage) -> Path:
    kind = {"ct": "_ct.nii", "mask": "_msk.nii", "centroids": "_ctd.json"}[damage.role]
    (path,) = (path for path in data_dir.rglob(f"{key}_*") if kind in path.name)
    return path


def contents(root: Path) -> dict[str, bytes]:
    """What was prepared of the good cases, without the record of where it came from."""
    files = [path for key in GOOD for path in root.rglob(f"{key}_*")]
    return {path.name: path.read_bytes() for path in files if path.name.endswith(PREPARED)}


def run_script(stage: str, data_dir: Path, work_dir: Path) -> subprocess.CompletedProcess:
    """Run the real script with two processes, in bounded time and memory."""
    command = [sys.executable, f"pre_processing_{stage}.py", "--data-dir", str(data_dir), "--preset", "small"]
    return subprocess.run(
        [*command, "--work-dir", str(work_dir), "--workers", "2"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES)),
    )


@pytest.mark.parametrize("stage", STAGES)
def test_a_script_names_every_damaged_file_and_prepares_the_others(tmp_path, stage):
    data_dir, work_dir = tmp_path / "data", tmp_path / "work"
    keys = write_tree(data_dir, DAMAGES)
    ran = run_script(stage, data_dir, work_dir)
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr + ran.stdout and "Warning" not in ran.stderr
    lines = re.findall(r"bad case (sub-\w+): (.*)", ran.stderr)
    assert len(lines) == len(dict(lines)) and set(dict(lines)) == keys_read(stage, keys)
    for key, said in lines:
        assert said.startswith(f"{damaged_file(data_dir, key, keys[key])}: expected ")
        assert re.search(keys[key].said, said)
    assert f"error: {len(lines)} bad cases left out" in ran.stderr
    prepared = {path.name.split("_")[0] for path in work_dir.rglob("sub-*")}
    assert prepared == {*GOOD, *keys} - keys_read(stage, keys)


@pytest.mark.parametrize("stage", STAGES)
def test_good_cases_are_not_affected_and_bad_ones_may_be_skipped(tmp_path, capfd, stage):
    run, settings = STAGES[stage]
    write_tree(tmp_path / "good")
    keys = write_tree(tmp_path / "all", [*DAMAGES, *FLIPS])
    changes = {"workers": 1, "spacing_mm": 2.0}
    with within(60):
        assert run(settings(data_dir=tmp_path / "good", work_dir=tmp_path / "alone", **changes)) == 0
        among = settings(data_dir=tmp_path / "all", work_dir=tmp_path / "among", skip_bad=True, **changes)
        assert run(among) == 0
    assert len(contents(tmp_path / "alone")) == len(GOOD) * (2 if stage == "heatmap" else 3)
    assert contents(tmp_path / "among") == contents(tmp_path / "alone")
    error = capfd.readouterr().err
    assert "Traceback" not in error and "Warning" not in error
    bad = set(re.findall(r"bad case (sub-\w+):", error))
    flips = {key for key, damage in keys.items() if damage in FLIPS}
    assert bad - flips == keys_read(stage, keys) - flips
    assert {path.name.split("_")[0] for path in (tmp_path / "among").rglob("sub-*")} == {*GOOD, *keys} - bad
    assert not [path for path in (tmp_path / "among").rglob("*") if ".part" in path.name]
