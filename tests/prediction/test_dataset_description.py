"""The description of a folder of predictions for programs for BIDS."""

import json

from utils import command_line
from utils.prediction.dataset_description import DESCRIPTION_PATH, write_dataset_description


def test_it_says_what_made_the_predictions(tmp_path):
    write_dataset_description(tmp_path)
    path = tmp_path / "dataset_description.json"
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]
    # The fields that BIDS 1.10 requires of a derivative dataset, and DatasetType.
    assert json.loads(path.read_text()) == {
        "Name": "Vertebrae segmented on CT",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "vertebra-segmentation",
                "Version": command_line.citation_of("version"),
                "Description": "Individual vertebra segmentation on CT",
            }
        ],
    }


def test_the_address_of_the_code_is_in_it_once_it_is_known(tmp_path, monkeypatch):
    (tmp_path / "CITATION.cff").write_text("title: T\nversion: 9\nrepository-code: https://example.org/x\n")
    monkeypatch.setattr(command_line, "_CITATION", tmp_path / "CITATION.cff")
    write_dataset_description(tmp_path)
    (made_by,) = json.loads((tmp_path / DESCRIPTION_PATH).read_text())["GeneratedBy"]
    assert made_by["CodeURL"] == "https://example.org/x" and made_by["Version"] == "9"


def test_one_of_the_user_stays(tmp_path):
    path = tmp_path / DESCRIPTION_PATH
    path.write_text("mine")
    write_dataset_description(tmp_path)
    assert path.read_text() == "mine"
