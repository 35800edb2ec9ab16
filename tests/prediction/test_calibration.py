"""Which networks the fit of the confidence takes."""

from pathlib import Path

import pytest

from utils.prediction import calibration
from utils.settings import LabellingTrainingSettings


@pytest.fixture
def asked(monkeypatch):
    """The settings that networks are loaded with."""
    settings = []
    monkeypatch.setattr(calibration, "load_networks", lambda found: settings.append(found) or FakeNetworks())
    return settings


class FakeNetworks:
    """What `trained_networks` reads of networks."""

    walk = {"patch_voxels": 64, "spacing_mm": 2.0}


def test_without_networks_in_the_work_folder_there_are_none(tmp_path, asked):
    assert calibration.trained_networks(LabellingTrainingSettings(work_dir=tmp_path)) is None
    assert asked == []


def test_networks_that_are_named_are_taken(tmp_path, asked):
    mine, heat = Path("mine/segmentation"), Path("mine/heat")
    settings = LabellingTrainingSettings(work_dir=tmp_path, segmentation=mine, heatmap=heat)
    assert calibration.trained_networks(settings) is not None
    (inference,) = asked
    assert (inference.segmentation, inference.heatmap, inference.work_dir) == (mine, heat, tmp_path)


def test_a_network_that_is_named_and_not_there_is_an_error(tmp_path):
    settings = LabellingTrainingSettings(work_dir=tmp_path, segmentation=tmp_path / "none")
    with pytest.raises(ValueError, match="expected a trained network"):
        calibration.trained_networks(settings)
