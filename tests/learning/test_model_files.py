"""The files of a model directory: which one holds the network, and what is copied of it."""

import pytest

from utils.learning.model_files import copy_model


def write(directory, *names):
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_text(f"{directory.name} {name}")
    return directory


def contents(directory):
    return {path.name: path.read_text() for path in directory.iterdir()}


@pytest.mark.parametrize("kind", ["best.weights.h5", "best.keras"])
def test_the_network_and_its_settings_are_copied_and_no_more(tmp_path, kind):
    source = write(tmp_path / "model", kind, "last.weights.h5", "history.csv", "settings.json")
    for _ in range(2):
        copy_model(source, tmp_path / "deep" / "copy")
    copied = {kind: f"model {kind}", "settings.json": "model settings.json"}
    assert contents(tmp_path / "deep" / "copy") == copied


@pytest.mark.parametrize("old, new", [("best.keras", "best.weights.h5"), ("best.weights.h5", "best.keras")])
def test_an_earlier_network_of_the_other_kind_does_not_stand_for_the_copy(tmp_path, old, new):
    target = write(tmp_path / "target", old, "settings.json", "notes.txt")
    copy_model(write(tmp_path / "model", new, "settings.json"), target)
    assert contents(target) == {
        new: f"model {new}",
        "settings.json": "model settings.json",
        "notes.txt": "target notes.txt",
    }


def test_a_directory_without_a_network_is_named(tmp_path):
    source = write(tmp_path / "model", "settings.json")
    with pytest.raises(ValueError, match="expected a trained network") as caught:
        copy_model(source, tmp_path / "copy")
    assert str(source) in str(caught.value) and not (tmp_path / "copy").exists()
