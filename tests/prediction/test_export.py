"""Networks as ONNX: the same numbers as in Keras, or no file."""

import json
import sys

import keras
import numpy as np
import onnxruntime
import pytest

from tests.prediction.test_predict import save_model
from utils.prediction import export as exporting
from utils.prediction.export import export, write_onnx
from utils.settings import ExportSettings


def network(outputs: int = 1) -> keras.Model:
    image = keras.Input((None, None, None, 2))
    return keras.Model(image, keras.layers.Conv3D(outputs, 3, padding="same", activation="sigmoid")(image))


def test_a_network_gives_the_same_for_any_number_of_examples_and_any_shape(tmp_path):
    own, path = network(), tmp_path / "network.onnx"
    assert write_onnx(own, path, side=8) <= 1e-3
    session = onnxruntime.InferenceSession(path)
    for shape in ((1, 8, 8, 8, 2), (3, 6, 10, 4, 2)):
        batch = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
        (found,) = session.run(None, {session.get_inputs()[0].name: batch})
        np.testing.assert_allclose(found, own(batch), atol=1e-3)


def test_a_network_that_differs_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="expected what Keras gives"):
        write_onnx(network(), tmp_path / "network.onnx", side=8)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_networks_is_exported_with_what_is_around_them(tmp_path, capsys):
    models = tmp_path / "models"
    facts = {"spacing_mm": 2.0, "patch_kinds": "paper", "preset": "paper", "outside": "air"}
    save_model(models / "segmentation", (8, 8, 8, 2), 1, **facts)
    save_model(models / "heatmap", (8, 8, 16, 1), 2, **facts)
    out = tmp_path / "onnx"
    assert export(ExportSettings(models=models, output=out)) == 0
    assert {path.name for path in out.iterdir()} == {"segmentation.onnx", "heatmap.onnx", "networks.json"}
    known = json.loads((out / "networks.json").read_text())
    assert known["networks"]["heatmap"]["input"] == [8, 8, 16, 1] and not known["finds_centres"]
    assert (known["spacing_mm"], known["outside"], known["hu"]) == (2.0, "air", [-1024, 3071])
    assert capsys.readouterr().out.count(" off Keras at most.") == 2


def test_what_is_missing_is_one_line(tmp_path, monkeypatch, capsys):
    assert export(ExportSettings(models=tmp_path / "none", output=tmp_path / "onnx")) == 1
    said = capsys.readouterr().err
    assert "none" in said and "expected a trained network" in said and said.count("\n") == 1
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(ModuleNotFoundError, match="tf2onnx"):  # one line: tests/test_packages.py
        export(ExportSettings(models=tmp_path, output=tmp_path / "onnx"))
    assert not (tmp_path / "onnx").exists()
