"""The Python call as its page describes it: in another folder than the project's, in a notebook too."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.doc_pages import PROJECT, blocks_of
from tests.prediction.test_starter import phantom_ct
from utils.imaging.nifti import write_volume

#: The example of the page.
(EXAMPLE,) = (
    block.text
    for block in blocks_of((PROJECT / "docs" / "your-own-cts.md").read_text())
    if block.language == "python"
)
KEY = "sub-example"


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    """A generated lumbar spine."""
    path = tmp_path_factory.mktemp("scans") / f"{KEY}_ct.nii.gz"
    write_volume(path, phantom_ct())
    return path


@pytest.fixture
def folder(scan, tmp_path) -> Path:
    """A folder of a user's, with a scan where the example has it."""
    (tmp_path / "try" / "data").mkdir(parents=True)
    shutil.copy(scan, tmp_path / "try" / "data")
    return tmp_path


def run(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # Nothing of the settings of whoever runs the tests, and nothing left in their home.
    places = {"HOME": str(folder / "home"), "CUDA_VISIBLE_DEVICES": "", **environment}
    known = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "JUPYTER_PATH")}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env={**known, **places}, capture_output=True, text=True, check=False
    )


def levels_written(folder: Path) -> list[str]:
    case = folder / "predictions" / "derivatives" / KEY
    assert (case / f"{KEY}_seg-vert_msk.nii.gz").is_file() and (case / f"{KEY}_angles.json").is_file()
    return pd.read_csv(case / f"{KEY}_vertebrae.csv")["name"].tolist()


def test_the_example_runs_in_another_folder(folder):
    ran = run("-c", EXAMPLE, folder=folder, PYTHONPATH=str(PROJECT))
    assert (ran.stdout, ran.stderr, ran.returncode) == ("", "", 0)
    assert {"L1", "L2", "L3", "L4"} <= {*levels_written(folder)}


def test_the_example_runs_in_a_notebook_and_shows_the_table(folder):
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbconvert")
    path = f"import sys; sys.path.insert(0, {str(PROJECT)!r})"
    cells = [nbformat.v4.new_code_cell(text) for text in (path, *EXAMPLE.split("\n\n"))]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "spine.ipynb")
    ran = run("-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", "spine.ipynb", folder=folder)
    assert ran.returncode == 0, ran.stderr
    outputs = [cell["outputs"] for cell in json.loads((folder / "spine.ipynb").read_text())["cells"]]
    (table,) = outputs[-1]
    # Neither the import of TensorFlow nor the networks write anything into a cell.
    assert not [output for cell in outputs for output in cell if output["output_type"] == "stream"]
    shown = re.findall(r"<th>\d+</th>\s*<td>(\w+)</td>", "".join(table["data"]["text/html"]))
    assert shown == levels_written(folder) and len(shown) >= 4
