"""What tells the networks of a directory from others."""

import json
import os
import re
import shutil

import pytest

from utils.prediction import networks
from utils.prediction.networks import identity_of_model
from utils.settings import SegmentationTrainingSettings, save_settings


@pytest.fixture
def directory(tmp_path):
    folder = tmp_path / "models" / "segmentation"
    save_settings(SegmentationTrainingSettings(), folder, spacing_mm=2.0)
    (folder / "best.weights.h5").write_bytes(b"weights")
    return folder


def change_settings(directory, **changed):
    path = directory / "settings.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_a_copied_touched_or_moved_network_is_the_same_one(directory, tmp_path):
    known = identity_of_model(directory)
    copy = shutil.copytree(directory, tmp_path / "copy")
    os.utime(copy / "best.weights.h5", (1, 1))
    assert identity_of_model(copy) == known
    assert identity_of_model(directory.rename(tmp_path / "moved")) == known


def test_it_is_the_same_wherever_and_however_it_was_trained(directory):
    known, path = identity_of_model(directory), directory / "settings.json"
    change_settings(directory, work_dir="elsewhere/work", start_from="other", device="gpu", name="mine")
    assert identity_of_model(directory) == known
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True, indent=7))
    assert identity_of_model(directory) == known


@pytest.mark.parametrize("name, value", [("spacing_mm", 1.5), ("preset", "paper"), ("outside", "air")])
def test_other_settings_of_what_a_network_does_make_another_one(directory, name, value):
    known = identity_of_model(directory)
    change_settings(directory, **{name: value})
    assert identity_of_model(directory) != known


def test_other_weights_of_the_same_size_and_time_make_another_network(directory):
    known, path = identity_of_model(directory), directory / "best.weights.h5"
    stat = path.stat()
    path.write_bytes(b"Weights")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert identity_of_model(directory) != known


def test_the_file_of_an_earlier_training_counts_where_there_are_no_weights(directory):
    known = identity_of_model(directory)
    (directory / "best.keras").write_bytes(b"earlier")
    assert identity_of_model(directory) == known
    (directory / "best.weights.h5").unlink()
    assert identity_of_model(directory) != known


def test_a_directory_without_a_network_has_none(directory):
    (directory / "best.weights.h5").unlink()
    with pytest.raises(ValueError, match=r"best\.weights\.h5: expected a trained network, found no such"):
        identity_of_model(directory)


@pytest.mark.parametrize("found", [None, "2", "two", [2], True, 0, -1, float("nan"), float("inf")])
def test_a_spacing_that_is_no_number_is_named(tmp_path, found):
    said = f"{tmp_path / 'settings.json'}: expected the spacing_mm of the training, a positive number"
    said = re.escape(said)
    with pytest.raises(ValueError, match=rf"^{said}, found {re.escape(repr(found))}\.$"):
        networks._spacing(tmp_path, {"spacing_mm": found})


@pytest.mark.parametrize(("found", "expected"), [(2, 2.0), (0.5, 0.5)])
def test_a_spacing_is_read(tmp_path, found, expected):
    assert networks._spacing(tmp_path, {"spacing_mm": found}) == expected
