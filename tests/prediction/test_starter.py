"""The starter weights: what is shipped, and a stored prediction that they give again."""

import json
from pathlib import Path

import numpy as np
import pytest

from utils.imaging.nifti import read_mask, write_volume
from utils.imaging.volume import Volume
from utils.prediction.derivatives import MASK_SUFFIX, case_path
from utils.prediction.networks import STARTER_DIR
from utils.prediction.predict import infer
from utils.settings import InferenceSettings
from utils.synthetic.phantom.make import make_phantom
from utils.verse.labels import code_of_name

REFERENCE = Path(__file__).with_name("starter_reference.nii.gz")
NETWORKS = ("heatmap", "segmentation", "labelling", "segmentation-base")
KEY = "sub-reference"


def phantom_ct() -> Volume:
    """A generated lumbar spine, L1 to L4 seen whole, that no network was trained on."""
    whole = (code_of_name("L1"), code_of_name("L4"))
    phantom = make_phantom(4242, whole=whole)
    return Volume(phantom.ct, phantom.affine)


def predicted_mask(folder: Path) -> Volume:
    """What `infer.py` writes for the phantom where the user has trained nothing."""
    ct = folder / f"{KEY}_ct.nii.gz"
    write_volume(ct, phantom_ct())
    settings = InferenceSettings(inputs=(ct,), work_dir=folder / "work", output=folder / "out", device="cpu")
    assert infer(settings) == 0
    return read_mask(case_path(folder / "out", KEY, MASK_SUFFIX))


@pytest.fixture(autouse=True)
def same_device(monkeypatch):
    """TensorFlow's devices are chosen once a process; a test must not choose for those after it."""
    monkeypatch.setattr("utils.learning.runtime.choose_device", lambda device: "cpu")


def test_a_stored_prediction_is_given_again(tmp_path):
    found, stored = predicted_mask(tmp_path), read_mask(REFERENCE)
    np.testing.assert_allclose(found.affine, stored.affine, atol=1e-4)
    codes = np.unique(stored.data)
    assert np.unique(found.data).tolist() == codes.tolist() and len(codes) >= 5
    for code in codes[codes > 0]:
        this, that = found.data == code, stored.data == code
        # Not bit for bit: instruction sets round otherwise.
        dice = 2 * np.count_nonzero(this & that) / (np.count_nonzero(this) + np.count_nonzero(that))
        assert dice >= 0.999, f"label {code}"


def test_what_is_shipped_is_small_whole_and_speaks_of_no_machine():
    files = [path for path in STARTER_DIR.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12 * 10**6
    for name in NETWORKS:
        text = (STARTER_DIR / name / "settings.json").read_text()
        settings = json.loads(text)
        assert (STARTER_DIR / name / "best.weights.h5").is_file()
        assert not any(isinstance(value, str) and value.startswith("/") for value in settings.values())
        assert '"/' not in text and "\\\\" not in text  # nor within a list
    card = (STARTER_DIR / "README.md").read_text()
    licences = ("CC BY-SA 4.0", "CC BY 3.0", "Apache-2.0")
    for needed in (*licences, "sub-verse014", "clinical", "experiments/starter.py"):
        assert needed in card, needed


if __name__ == "__main__":  # python -m tests.prediction.test_starter: store the prediction of new weights
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        write_volume(REFERENCE, predicted_mask(Path(temporary)))
        print(f"{REFERENCE}: {REFERENCE.stat().st_size} bytes")
