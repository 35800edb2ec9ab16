"""The client of docs/onnx_example.py: the vertebrae of `infer.py` without TensorFlow and this project."""

import ast
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.prediction.test_starter import KEY, REFERENCE, phantom_ct
from tests.skips import SHARED
from utils.execution import PROJECT_DIR
from utils.imaging.nifti import read_mask, write_volume
from utils.localisation.chain import followers, lengths_mm
from utils.prediction.export import export
from utils.prediction.interface import segment
from utils.prediction.networks import STARTER_DIR
from utils.settings import ExportSettings
from utils.verse.labels import code_of_name

FILES = [PROJECT_DIR / "docs" / name for name in ("onnx_example.py", "onnx_arithmetic.py")]
ALLOWED = {"json", "sys", "pathlib", "nibabel", "numpy", "onnxruntime", "onnx_arithmetic"}
ANGLE = SHARED / "data/VerSe19/dataset-verse19training/rawdata/sub-verse014/sub-verse014_ct.nii.gz"
#: Before anything else: what a client has not.
REFUSING = """
import sys
for name in ("tensorflow", "keras", "scipy", "utils", "ML_3D_Unet"):
    sys.modules[name] = None
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    assert export(ExportSettings(models=STARTER_DIR, output=folder)) == 0
    return folder


@pytest.fixture
def run_example(exported, tmp_path):
    """Gives the mask that the client writes for a scan."""
    (tmp_path / "sitecustomize.py").write_text(REFUSING)

    def run(scan):
        command = [sys.executable, FILES[0], scan, exported, tmp_path / "mask.nii.gz"]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
        return read_mask(tmp_path / "mask.nii.gz")

    return run


def check_same(found, expected):
    """The same labels on the same grid, and a mean Dice of .97 at least."""
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    codes = np.unique(expected.data)[1:]
    assert np.unique(found.data)[1:].tolist() == codes.tolist()
    both = [(found.data == code, expected.data == code) for code in codes]
    dice = [2 * (this & that).sum() / (this.sum() + that.sum()) for this, that in both]
    assert np.mean(dice) >= 0.97, dict(zip(codes, dice))


def test_a_phantom_gets_the_stored_prediction(run_example, tmp_path):
    scan = tmp_path / f"{KEY}_ct.nii.gz"
    write_volume(scan, phantom_ct())
    check_same(run_example(scan), read_mask(REFERENCE))


@pytest.mark.skipif(not ANGLE.is_file(), reason="needs shared/data")
def test_a_scan_at_an_angle_gets_the_vertebrae_of_the_inference(run_example, tmp_path, monkeypatch):
    # TensorFlow's devices are chosen once a process; a test must not choose for those after it.
    monkeypatch.setattr("utils.learning.runtime.choose_device", lambda device: "cpu")
    found = segment(ANGLE, device="cpu")
    found.save(tmp_path / "out")
    (expected,) = (tmp_path / "out").rglob("*_msk.nii.gz")
    check_same(run_example(ANGLE), read_mask(expected))


def test_a_scan_without_a_spine_gets_an_empty_mask(run_example, tmp_path):
    scan = tmp_path / "noise_ct.nii.gz"
    ct = phantom_ct()
    ct.data[:] = np.random.default_rng(0).normal(0, 40, ct.shape)
    write_volume(scan, ct)
    assert not run_example(scan).data.any()


def test_it_is_short_and_imports_nothing_else():
    assert len(FILES[0].read_text().splitlines()) <= 150
    for path in FILES:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        assert {name.partition(".")[0] for name in names} <= ALLOWED


def test_the_tables_around_the_networks_are_those_of_the_inference(exported):
    facts = json.loads((exported / "networks.json").read_text())
    assert facts["levels"]["code"] == [code_of_name(name) for name in facts["levels"]["name"]]
    for skipped, step in enumerate(facts["steps"]):
        np.testing.assert_allclose(step["follows"], followers(skipped), atol=1e-6)
        np.testing.assert_allclose(step["mm"], lengths_mm(skipped), atol=1e-6)
    assert [step["weight"] for step in facts["steps"]] == [0, -3]
    assert facts["none_share"] == 0.3 and facts["levels"]["name"][19] == "T13"
