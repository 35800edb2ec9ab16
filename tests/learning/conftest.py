"""Prepared data of both stages, read back: what several modules of this folder share."""

import pytest

from tests.learning import examples
from utils.learning import prepared_data, spine_cases


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory):
    return examples.write_segmentation_stage(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def data(segmentation):
    return prepared_data.read_segmentation_data(segmentation / "training")


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = examples.write_heatmap_stage(tmp_path_factory.mktemp("work"))
    read, bad = prepared_data.read_heatmap_cases(folder / "training")
    assert bad == []
    return read


@pytest.fixture(scope="module")
def spines(tmp_path_factory):
    folder = examples.write_spine_stage(tmp_path_factory.mktemp("work"))
    read, bad = spine_cases.read_spine_data(folder / "training")
    assert bad == []
    return read
