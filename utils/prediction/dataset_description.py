"""The file by which programs for BIDS know that a folder holds predictions, and what made them."""

from __future__ import annotations

import json
from pathlib import Path

from utils.command_line import citation_of
from utils.files import write_text_whole

#: In the folder of the predictions; `derivatives` in it holds the folders of the subjects alone.
DESCRIPTION_PATH = Path("dataset_description.json")
#: The version of BIDS in which a derivative dataset is described so.
BIDS_VERSION = "1.10.0"


def write_dataset_description(output: Path) -> None:
    """Write `output/dataset_description.json`, whole; one that is there stays as it is.

    Parameters
    ----------
    output : Path
        Folder of the predictions.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    path = output / DESCRIPTION_PATH
    if path.exists():
        return
    generator = {
        "Name": "vertebra-segmentation",
        "Version": citation_of("version"),
        "Description": citation_of("title"),
        "CodeURL": citation_of("repository-code"),
    }
    description = {
        "Name": "Vertebrae segmented on CT",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{name: value for name, value in generator.items() if value is not None}],
    }
    write_text_whole(path, json.dumps(description, indent=2) + "\n")
