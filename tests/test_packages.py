"""An installation for segmenting alone: what works in it, and what is said where a package is missing."""

import os
import re
import subprocess
import sys

import pytest

from tests.prediction.test_starter import phantom_ct
from utils.execution import PROJECT_DIR
from utils.imaging.nifti import write_volume
from utils.packages import check_packages, line_about_missing

#: What requirements.txt does not install, by the names that are imported; TensorFlow imports two more itself.
NOT_THERE = (
    *("distributed", "dask", "tensorboard"),
    *("onnx", "onnxruntime", "tf2onnx", "highdicom", "pytest", "selenium", "torch"),
)
OF_TENSORFLOW = ("requests", "urllib3")
#: Runs before anything else in a process of Python's.
REFUSING = """
import os, sys
class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in os.environ["REFUSED"].split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refusing())
"""


@pytest.fixture
def run(tmp_path):
    """Runs Python in the project's folder as if packages were not installed."""
    (tmp_path / "site" / "sitecustomize.py").parent.mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(REFUSING)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "TMPDIR": str(tmp_path)}
    how = {"cwd": PROJECT_DIR, "capture_output": True, "text": True, "check": False}

    def run(*command: object, refused: tuple[str, ...] = NOT_THERE) -> subprocess.CompletedProcess[str]:
        known = {**environment, "REFUSED": " ".join(refused)}
        return subprocess.run([sys.executable, *map(str, command)], env=known, **how)

    return run


def test_scans_are_segmented_and_scored(run, tmp_path):
    scan, out = tmp_path / "sub-a_ct.nii.gz", tmp_path / "out"
    write_volume(scan, phantom_ct())
    ran = run(
        "infer.py", scan, "--output", out, "--work-dir", tmp_path / "work", "--device", "cpu", "--report"
    )
    assert ran.returncode == 0 and re.search(r"sub-a: \d vertebrae", ran.stdout), ran.stderr
    code = f"from utils.prediction import segment; print(len(segment({str(scan)!r}, device='cpu').table))"
    ran = run("-c", code)
    assert (ran.returncode, int(ran.stdout)) == (0, 5), ran.stderr
    scores = tmp_path / "scores"
    ran = run("evaluate.py", "--split", "all", "--data-dir", out, "--predictions", out, "--output", scores)
    assert ran.returncode == 0 and '"mean_dice": 1.0' in (scores / "summary.json").read_text()


@pytest.mark.parametrize("script", sorted(path.name for path in PROJECT_DIR.glob("*.py")))
def test_every_script_has_its_help(run, script):
    ran = run(script, "--help", refused=NOT_THERE + OF_TENSORFLOW)
    assert ran.returncode == 0 and "usage:" in ran.stdout.lower(), ran.stderr


@pytest.mark.parametrize(
    ("command", "package", "file"),
    [
        ("get_verse_data.py --source osf", "requests", "requirements-train.txt"),
        ("train_segmentation.py --preset small", "tensorboard", "requirements-train.txt"),
        ("infer.py nothing.nii.gz --scheduler tcp://127.0.0.1:1", "distributed", "requirements-train.txt"),
        ("export.py --models models/starter", "onnx", "requirements-onnx.txt"),
    ],
)
def test_what_is_missing_is_one_line(run, tmp_path, command, package, file):
    ran = run(*command.split(), refused=(package,))
    expected = f"error: expected the package {package}, found none: pip install -r {file}\n"
    assert (ran.returncode, ran.stderr) == (2, expected)


def test_a_module_that_no_requirements_file_has_is_no_matter_of_the_installation():
    assert line_about_missing(ModuleNotFoundError("", name="utils.no_such_module")) is None
    assert line_about_missing(ModuleNotFoundError("")) is None


@pytest.mark.parametrize(
    ("module", "file"),
    [
        ("tensorflow.python", "requirements.txt"),
        ("surface_distance", "requirements.txt"),
        ("SimpleITK", "requirements.txt"),
        ("urllib3.util", "requirements-train.txt"),
    ],
)
def test_the_file_is_that_which_installs_it(module, file):
    assert line_about_missing(ModuleNotFoundError("", name=module)).endswith(f"pip install -r {file}")


def test_a_package_that_is_not_installed_is_named():
    check_packages("numpy", "json")
    with pytest.raises(ModuleNotFoundError) as found:
        check_packages("numpy", "no_such_package")
    assert found.value.name == "no_such_package"
