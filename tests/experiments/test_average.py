"""The mean of the weights of trained networks, and what is refused."""

import json

import keras
import numpy as np
import pytest

from experiments import average as averaging
from utils.learning import models
from utils.settings import SegmentationTrainingSettings, save_settings

TINY = SegmentationTrainingSettings(filters=(2, 3, 4, 5), patch_voxels=8, norm="instance")


def trained(folder, seed, settings=TINY):
    folder.mkdir()
    keras.utils.set_random_seed(seed)
    models.save_weights(models.build_segmentation_network(settings), folder)
    save_settings(settings, folder, spacing_mm=2.0)
    return folder


@pytest.mark.parametrize("options, shares", [([], [1, 1, 1]), (["--shares", "4", "0.5", "1"], [4, 0.5, 1])])
def test_the_average_has_the_mean_of_the_weights(tmp_path, options, shares):
    folders = [trained(tmp_path / name, seed) for seed, name in enumerate("abc")]
    output = tmp_path / "deep" / "average"
    assert averaging.main([*map(str, folders), "--output", str(output), *options]) == 0
    network, settings = models.load_model(output)
    weights = [models.load_model(folder)[0].get_weights() for folder in folders]
    for found, *those in zip(network.get_weights(), *weights):
        expected = sum(share * each for share, each in zip(shares, those)) / sum(shares)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert settings["average_of"] == [str(folder) for folder in folders]
    assert settings["shares"] == shares
    assert sorted(path.name for path in output.iterdir()) == ["best.weights.h5", "settings.json"]
    own = json.loads((folders[0] / "settings.json").read_text())
    assert {name: settings[name] for name in own} == own


def test_networks_of_other_shapes_are_refused(tmp_path, capsys):
    other = SegmentationTrainingSettings(filters=(2, 3, 4, 6), patch_voxels=8, norm="instance")
    folders = [trained(tmp_path / "a", 0), trained(tmp_path / "b", 1, other)]
    output = tmp_path / "average"
    assert averaging.main([*map(str, folders), "--output", str(output)]) == 1
    assert f"{folders[1]}: expected a network of the shapes of {folders[0]}" in capsys.readouterr().err
    assert not output.exists()


def test_one_network_is_no_average(tmp_path):
    with pytest.raises(SystemExit, match="2"):
        averaging.main([str(trained(tmp_path / "a", 0)), "--output", str(tmp_path / "average")])


@pytest.mark.parametrize("shares", [("1",), ("1", "-1"), ("0", "0"), ("nan", "1"), ("1", "inf")])
def test_wrong_shares_are_refused(tmp_path, capsys, shares):
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    with pytest.raises(SystemExit, match="2"):
        averaging.main([*folders, "--output", str(tmp_path / "average"), "--shares", *shares])
    assert "--shares: expected 2 of 0 or more" in capsys.readouterr().err
