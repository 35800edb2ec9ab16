"""The prepared scans of the network of centres and levels, read back, and how an epoch shares them out."""

import json

import numpy as np
import pytest

from tests.learning import examples
from utils.learning import epochs, spine_cases, training_data
from utils.learning.spine_cases import ORIGINS, SpineCase, SpineData
from utils.preparation.prepared import PHANTOM, write_sidecar
from utils.preparation.spine_case import write_spine_case
from utils.settings import HeatmapTrainingSettings


@pytest.fixture
def folder(tmp_path):
    """Two scans of the data set, of which sub-a is a phantom, and a drawn one."""
    folder = examples.write_spine_stage(tmp_path) / "training"
    write_sidecar(folder / "sub-a_prepared.json", {}, {}, [], origin=PHANTOM)
    write_spine_case(folder, "drawn-0-0000000", *examples.spine_scan((20, 21), 5, is_complete=True))
    return folder


def test_scans_are_read_with_their_spines_and_origins(folder):
    data, bad = spine_cases.read_spine_data(folder)
    assert bad == [] and len(data) == 3
    keys = ["drawn-0-0000000", "sub-a", "sub-b"]
    assert [case.key for case in data.cases] == spine_cases.spine_keys(folder) == keys
    assert [case.origin for case in data.cases] == ["drawn", "phantom", "scan"]
    assert {case.shape for case in data.cases} == {examples.SPINE_SHAPE}
    assert [case.spine.codes for case in data.cases] == [(20, 21), (19, 28, 20), (20, 21)]
    assert [case.spine.is_complete for case in data.cases] == [True, False, False]


def test_a_block_is_that_part_of_the_scan(folder):
    data, _ = spine_cases.read_spine_data(folder)
    ct, _ = examples.spine_scan((19, 28, 20), 0)
    found = data.block(data.cases[1], np.array([2, 3, 4]), np.array([9, 8, 12]))
    np.testing.assert_array_equal(found, ct.data[2:9, 3:8, 4:12])


def test_scans_are_left_out_and_a_folder_that_is_not_there_has_none(folder):
    data, bad = spine_cases.read_spine_data(folder, exclude={"sub-a"})
    assert [case.key for case in data.cases] == ["drawn-0-0000000", "sub-b"] and bad == []
    data, bad = spine_cases.read_spine_data(folder / "none")
    assert len(data) == 0 and bad == []


def test_bad_scans_are_named_and_the_others_read(folder):
    (folder / "sub-a_spine.json").write_text("{")
    (folder / "sub-b_ct.nii").write_bytes(b"no scan")
    data, bad = spine_cases.read_spine_data(folder)
    assert [case.key for case in data.cases] == ["drawn-0-0000000"]
    assert bad[0].startswith(f"{folder / 'sub-a_spine.json'}: expected a prepared spine")
    assert len(bad) == 2 and str(folder / "sub-b_ct.nii") in bad[1]


# How an epoch shares them out


def data_of(*origins):
    cases = (SpineCase(f"sub-{n}", None, None, origin) for n, origin in enumerate(origins))
    return SpineData(None, tuple(cases))


SETTINGS = HeatmapTrainingSettings(origins=(0.5, 0.25, 0.25), examples_per_epoch=16, seed=3)
MIXED = data_of("scan", "phantom", "drawn", "phantom")


def test_without_shares_every_scan_counts_alike():
    settings = HeatmapTrainingSettings()
    for data, chosen in ((MIXED, settings), (MIXED, None)):
        (group,) = epochs.groups_of(data, chosen)
        assert group.tolist() == [0, 1, 2, 3]
    assert epochs.examples_in_epoch(MIXED, settings) == 4
    assert sorted(epochs.items_of_epoch(epochs.groups_of(MIXED, settings), settings, 0)) == [0, 1, 2, 3]


def test_origins_have_the_shares_that_were_asked_for():
    assert ORIGINS == ("phantom", "drawn", "scan")
    groups = epochs.groups_of(MIXED, SETTINGS)
    assert [group.tolist() for group in groups] == [[1, 3], [2], [0]]
    assert np.bincount(epochs.items_of_epoch(groups, SETTINGS, 1)).tolist() == [4, 4, 4, 4]
    # Validation shows each once.
    assert [group.tolist() for group in epochs.groups_of(MIXED, None)] == [[0, 1, 2, 3]]


def test_shares_without_a_scan_are_refused_by_their_own_option():
    settings = HeatmapTrainingSettings(origins=(0, 1, 0))
    groups = epochs.groups_of(data_of("scan", "phantom"), settings)
    with pytest.raises(ValueError, match=r"--origins, found \(1, 0, 1\) for \(0, 1, 0\)"):
        epochs.items_of_epoch(groups, settings, 0)


def test_the_facts_name_the_scans_that_take_part():
    settings = HeatmapTrainingSettings(origins=(0, 1, 1))
    facts = training_data.case_facts(MIXED, data_of("phantom"), settings)
    assert facts == {"training_cases": ["sub-0", "sub-2"], "validation_cases": ["sub-0"]}
    json.dumps(facts)
