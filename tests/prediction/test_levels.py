"""Anatomical labels in a run of the inference, labels changed later, and the fitted temperature."""

import csv
import hashlib
import json

import numpy as np
import pytest
from scipy import ndimage

from tests.learning.examples import write_segmentation_stage
from tests.prediction.test_predict import FakeNetworks, fake, mask_path, settings_for, write_column  # noqa: F401
from tests.walk.column import column, column_ct
from utils.imaging.centroids import read_centroids
from utils.imaging.grids import oriented
from utils.imaging.nifti import read_mask
from utils.imaging.volume import Volume
from utils.learning.labelling import CLASSES, Votes
from utils.localisation.identify import identify, sequence_log_probability, transitions_of
from utils.prediction import calibration, predict
from utils.prediction.calibration import (
    LabelledColumn,
    cut_column,
    disturbed_masks,
    fitted_temperature,
    train_labelling,
    trained_networks,
    true_codes_of,
)
from utils.prediction.levels import Levels, doubt_about, load_levels, relabel_case
from utils.prediction.predict import infer
from utils.presets import preset_settings
from utils.settings import LabellingTrainingSettings, load_settings
from utils.verse.labels import LEVEL_NAMES, code_of_name

T10 = LEVEL_NAMES.index("T10") + 1
#: Ranks that the scripted network gives the column's six blocks, told by their HU; 0 is not a vertebra.
RANKS = {1: T10, 2: T10 + 1, 3: T10 + 2, 4: T10 + 4, 5: T10 + 5, 6: T10 + 6}  # T13 is left out
NAMES = ("T10", "T11", "T12", "L1", "L2", "L3")


def levels_that_give(ranks, strength=6.0):
    """A network that reads a block's number off the HU in the middle of its patch."""

    def predict_level(patch):
        middle = tuple(n // 2 for n in patch.shape[:3])
        block = round(((patch[middle][0] + 1) * 4095 / 2 - 1024) / 200)
        logits = np.zeros(CLASSES + 1)
        logits[0], logits[CLASSES] = -3.0, 2.0
        logits[ranks[block]] = strength
        return logits

    return Levels(predict_level, (24, 20, 32), 1.0)


@pytest.fixture(autouse=True)
def same_device(monkeypatch):
    """TensorFlow's devices are chosen once a process; a test must not choose for those after it."""
    monkeypatch.setattr("utils.learning.runtime.choose_device", lambda device, preset=None: "cpu")


@pytest.fixture(autouse=True)
def no_starter_weights(monkeypatch, tmp_path):
    """Networks that are shipped with the code must not stand in for those of a test."""
    monkeypatch.setattr("utils.prediction.networks.STARTER_DIR", tmp_path / "not shipped")


@pytest.fixture
def labelled(fake, monkeypatch, tmp_path):  # noqa: F811
    """The fake networks with a labelling network that gives `RANKS`."""
    (tmp_path / "labelling").mkdir()
    (tmp_path / "labelling" / "best.weights.h5").write_text("scripted")
    (tmp_path / "labelling" / "settings.json").write_text("{}")
    predict._networks_of_process.cache_clear()
    monkeypatch.setattr(predict, "load_levels", lambda directory: levels_that_give(RANKS))
    yield {"labelling_model": tmp_path / "labelling"}
    predict._networks_of_process.cache_clear()


def table_of(output, key="sub-a"):
    path = mask_path(output, key).with_name(f"{key}_vertebrae.csv")
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


# Inference


def test_with_a_labelling_network_vertebrae_get_their_levels(tmp_path, labelled, capsys):
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out, **labelled)) == 0
    codes = [code_of_name(name) for name in NAMES]
    expected = np.array([0, *codes], np.uint8)[column().data.astype(int)]
    found = read_mask(mask_path(out, "sub-a"))
    np.testing.assert_array_equal(oriented(found).data, expected)
    rows = table_of(out)
    assert [row["name"] for row in rows] == list(NAMES)
    assert {row["numbering"] for row in rows} == {"anatomical"}
    assert all(0.9 < float(row["label_probability"]) <= 1 for row in rows)
    assert {float(row["complete_probability"]) for row in rows} == {round(1 / (1 + np.exp(-2.0)), 4)}
    record = json.loads(mask_path(out, "sub-a").with_name("sub-a_settings.json").read_text())
    digest = hashlib.sha256(b"scripted").hexdigest()
    assert record["networks"]["labelling"]["weights_sha256"] == digest
    assert infer(settings_for(scan, output=out, **labelled)) == 0
    assert "sub-a: already predicted" in capsys.readouterr().out


def test_without_one_they_are_counted_and_the_probabilities_are_empty(tmp_path, fake):  # noqa: F811
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    predict._networks_of_process.cache_clear()
    assert infer(settings_for(scan, output=out, work_dir=tmp_path)) == 0
    rows = table_of(out)
    assert [row["name"] for row in rows] == list("123456")
    assert {(row["label_probability"], row["complete_probability"]) for row in rows} == {("", "")}


def test_the_identification_reaches_the_case(tmp_path, fake):  # noqa: F811
    scan = predict.find_scans((write_column(tmp_path / "sub-a_ct.nii.gz"),)).scans[0]
    settings = settings_for(scan.path, output=tmp_path, work_dir=tmp_path)
    levels = levels_that_give(RANKS)
    case, warning = predict.predict_case(scan, FakeNetworks().networks(), settings, levels=levels)
    assert warning == ""
    assert case.identification.names == NAMES and case.identification.anchor == "last rib"
    assert case.identification.sequence_probability > 0.9 > case.identification.second_probability
    assert (case.quality.kind, case.quality.anchor) == ("anatomical", "last rib")
    assert case.quality.sequence_probability == pytest.approx(
        case.identification.sequence_probability, abs=1e-4
    )
    assert case.quality.second_names == case.identification.second_names
    case, _ = predict.predict_case(scan, FakeNetworks().networks(), settings)
    assert case.identification is None


def test_what_is_no_vertebra_is_left_out_and_said(tmp_path, fake):  # noqa: F811
    scan = predict.find_scans((write_column(tmp_path / "sub-a_ct.nii.gz"),)).scans[0]
    settings = settings_for(scan.path, output=tmp_path, work_dir=tmp_path)
    levels = levels_that_give({**RANKS, 6: 0})
    case, warning = predict.predict_case(scan, FakeNetworks().networks(), settings, levels=levels)
    assert [row["name"] for row in case.table] == list(NAMES[:5])
    assert warning == "1 of 6 found get no label, as no vertebrae"
    assert not oriented(case.labels).data[column().data == 6].any()


def test_levels_that_are_named_overrule_with_and_without_a_network(tmp_path, labelled):
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out, fix=("3=L1",), **labelled)) == 0
    assert table_of(out)[2]["name"] == "L1"
    assert infer(settings_for(scan, output=out, first_label="T12", **labelled)) == 0
    assert [row["name"] for row in table_of(out)][:2] == ["T12", "L1"]
    predict._networks_of_process.cache_clear()
    assert infer(settings_for(scan, output=out, fix=("3=T12",), work_dir=tmp_path)) == 0
    assert [row["name"] for row in table_of(out)] == list(NAMES)


@pytest.mark.parametrize("fix", [("T12",), ("1=T20",), ("1=T1", "1=T2")])
def test_a_wrong_fix_ends_with_status_2(tmp_path, fake, capsys, fix):  # noqa: F811
    scan = write_column(tmp_path / "sub-a_ct.nii.gz")
    assert infer(settings_for(scan, output=tmp_path / "out", fix=fix)) == 2
    assert fake.patches == 0


# Labels changed later


def test_relabelling_changes_labels_and_segments_nothing(tmp_path, labelled, fake, capsys):  # noqa: F811
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out, work_dir=tmp_path)) == 0
    assert infer(settings_for(scan, output=out, **labelled)) == 0
    before, calls, rows = read_mask(mask_path(out, "sub-a")), fake.patches, table_of(out)
    assert infer(settings_for(scan, output=out, first_label="T11", relabel=True, **labelled)) == 0
    assert "sub-a: relabelled T11 T12" in capsys.readouterr().out
    after, new_rows = read_mask(mask_path(out, "sub-a")), table_of(out)
    assert fake.patches == calls
    np.testing.assert_array_equal(after.data > 0, before.data > 0)
    assert [row["name"] for row in new_rows][:2] == ["T11", "T12"]
    kept = ("volume_mm3", "mean_hu", "centre_x", "centre_y", "centre_z", "steps", "mean_probability")
    assert [[row[name] for name in kept] for row in new_rows] == [
        [row[name] for name in kept] for row in rows
    ]
    points = read_centroids(mask_path(out, "sub-a").with_name("sub-a_seg-vb_ctd.json"), after.grid)
    assert points.codes[0] == code_of_name("T11")
    # It now is what an inference with this option would have made.
    assert infer(settings_for(scan, output=out, first_label="T11", **labelled)) == 0
    assert "sub-a: already predicted" in capsys.readouterr().out and fake.patches == calls


def test_relabelling_what_is_not_there_is_a_bad_scan(tmp_path, labelled, capsys):
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out, relabel=True, **labelled)) == 1
    assert f"{out}: expected a prediction of sub-a to relabel, found none" in capsys.readouterr().err


def test_relabelling_another_scan_is_refused(tmp_path, labelled, capsys):
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out, **labelled)) == 0
    write_column(scan, "PIR")
    assert infer(settings_for(scan, output=out, relabel=True, **labelled)) == 1
    assert f"{scan}: expected the scan that the prediction" in capsys.readouterr().err
    ct = oriented(column_ct(), ("P", "I", "R"))
    with pytest.raises(ValueError, match="expected the grid of the scan"):
        relabel_case(ct, out, "sub-a", levels=levels_that_give(RANKS), fixed={}, settings={})


def test_relabelling_needs_a_network_or_a_level(tmp_path, labelled, capsys):
    scan, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    assert infer(settings_for(scan, output=out, work_dir=tmp_path)) == 0
    predict._networks_of_process.cache_clear()
    assert infer(settings_for(scan, output=out, work_dir=tmp_path, relabel=True)) == 1
    assert "expected a labelling network for --relabel" in capsys.readouterr().err
    assert infer(settings_for(scan, output=out, work_dir=tmp_path, relabel=True, first_label="L1")) == 0
    assert [row["name"] for row in table_of(out)] == ["L1", "L2", "L3", "L4", "L5", "L6"]


def test_doubt_is_said_with_both_sequences():
    votes = np.zeros((2, CLASSES))
    votes[:, 0] = -20
    votes[0, LEVEL_NAMES.index("T5") + 1] = 6
    votes[0, LEVEL_NAMES.index("T6") + 1] = 5.5
    votes -= np.log(np.exp(votes).sum(axis=1, keepdims=True))
    found = identify(votes, np.ones(2), np.array([[0, 0, 0], [0, 0, -22.0]]))
    said = doubt_about(found)
    assert said.startswith("labels uncertain: T5 T6 with probability 0.")
    assert ", T6 T7 with 0." in said


# Training and temperature


def scripted_columns(scale, count=150):
    """Columns of four vertebrae whose votes are honest log-probabilities times `scale`."""
    generator, columns = np.random.default_rng(5), []
    for _ in range(count):
        first = int(generator.integers(8, 14))
        evidence = generator.normal(0, 1.0, (4, CLASSES))
        # The logarithm of the likelihood of a normal number whose mean is 1 at the true class.
        evidence[np.arange(4), first + np.arange(4)] += 1.0
        evidence[:, 0] = -30
        honest = evidence - np.log(np.exp(evidence).sum(axis=1, keepdims=True))
        centres = np.array([[0, 0, -22.0 * place] for place in range(4)])
        codes = tuple(first + place for place in range(4))
        columns.append(LabelledColumn(Votes(honest * scale, np.ones(4), centres), codes))
    return columns


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_temperature_undoes_what_the_votes_claim_too_much(scale):
    assert fitted_temperature(scripted_columns(scale)) == pytest.approx(scale, rel=0.2)


def test_a_sequence_that_no_rule_allows_does_not_decide_alone():
    columns = scripted_columns(1.0, count=50)
    wrong = LabelledColumn(columns[0].votes, columns[0].codes[::-1])
    transitions = transitions_of(wrong.votes.centres_mm)
    parts = (wrong.votes.log_probabilities, wrong.votes.complete, transitions)
    assert sequence_log_probability(*parts, wrong.codes, temperature=1.0) == -np.inf
    assert np.isfinite(fitted_temperature([*columns, wrong]))


def test_a_cut_column_shows_a_part_of_the_scan_where_it_was():
    ranks = column()
    ranks = type(ranks)(ranks.data.astype(np.uint8), ranks.affine)
    lengths = set()
    for seed in range(20):
        ct, seen = cut_column(column_ct(), ranks, np.random.default_rng(seed))
        numbers = np.unique(seen.data[seen.data > 0])
        assert len(numbers) and (np.diff(numbers) == 1).all() and ct.shape == seen.shape
        lengths.add(len(numbers))
        top = round(float((seen.affine[:3, 3] - ranks.affine[:3, 3]) @ ranks.affine[:3, 2] / 4))
        part = ranks.data[:, :, top : top + seen.shape[2]]
        np.testing.assert_array_equal(seen.data[seen.data > 0], part[seen.data > 0])
    assert len(lengths) > 2
    assert cut_column(column_ct(), ranks, None)[1] is ranks


def test_masks_are_disturbed_as_predictions_are():
    ranks = column()
    ranks = type(ranks)(ranks.data.astype(np.uint8), ranks.affine)
    first, again, other = (disturbed_masks(ranks, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.data, again.data)
    assert (first.data != other.data).any() and (first.data != ranks.data).any()
    for rank in np.unique(ranks.data[ranks.data > 0]):
        true, found = ranks.data == rank, first.data == rank
        assert 0.2 < 2 * np.count_nonzero(true & found) / (true.sum() + found.sum()) <= 1.0
    np.testing.assert_array_equal(first.affine, ranks.affine)


def bones(ct):
    """The blocks of a scan (`tests.learning.examples.scan`), numbered from the top."""
    return Volume(ndimage.label(np.asarray(ct.data) > 100)[0].astype(np.uint8), ct.affine)


def test_predicted_vertebrae_get_the_codes_of_the_reference_that_they_lie_in():
    ranks = Volume(np.zeros((10, 10, 40), np.uint8), np.diag([2.0, 2, 2, 1]))
    found = Volume(np.zeros_like(ranks.data), ranks.affine)
    for place, (number, rank) in enumerate([(1, 0), (2, T10), (3, 0), (4, T10 + 2), (5, 0)]):
        part = np.s_[:, :, 8 * place : 8 * place + 6]
        found.data[part], ranks.data[part] = number, rank
    found.data[:, :, 14:17] = 2  # a leak of half its size into what nobody labelled
    numbers, codes = true_codes_of(found, ranks)
    # The first and the last may be cut vertebrae that the reference leaves out; the third is a false one.
    assert numbers == [2, 3, 4] and codes == (code_of_name("T10"), 0, code_of_name("T12"))
    finer = Volume(np.repeat(ranks.data, 2, axis=0), np.diag([1.0, 2, 2, 1]))
    finer.affine[0, 3] = -0.5
    assert true_codes_of(found, finer) == (numbers, codes)
    assert true_codes_of(Volume(np.zeros_like(found.data), found.affine), ranks) == ([], ())


def test_networks_of_a_work_folder_are_used_when_both_are_there(tmp_path, monkeypatch):
    settings = LabellingTrainingSettings(work_dir=tmp_path)
    assert trained_networks(settings) is None
    for name in ("segmentation", "heatmap"):
        directory = tmp_path / "models" / name
        directory.mkdir(parents=True)
        (directory / "best.weights.h5").touch()
        if name == "segmentation":
            assert trained_networks(settings) is None
    monkeypatch.setattr(calibration, "load_networks", lambda settings: FakeNetworks().networks())
    found = trained_networks(settings)(column_ct())
    np.testing.assert_array_equal(found.data, column().data)  # numbered from the top down, as its ranks are


def test_a_training_leaves_a_network_with_its_temperature(tmp_path, monkeypatch, capsys):
    write_segmentation_stage(tmp_path)
    monkeypatch.setattr(calibration, "COLUMNS_A_SCAN", 2)
    settings = preset_settings(
        LabellingTrainingSettings,
        "small",
        work_dir=tmp_path,
        patch_voxels=(12, 12, 16),
        filters=(2, 3),
        epochs=2,
        examples_per_epoch=6,
        batch_size=3,
        tensorboard=False,
        device="cpu",
    )
    assert train_labelling(settings) == 0
    directory = tmp_path / "models" / "labelling"
    found = load_settings(directory)
    assert found["calibration_columns"] == 2 and 0.25 <= found["temperature"] <= 20
    assert found["calibration_masks"] == "reference"
    levels = load_levels(directory)
    assert levels.patch_voxels == (12, 12, 16)
    assert levels.predict(np.zeros((12, 12, 16, 3), np.float32)).shape == (CLASSES + 1,)
    assert train_labelling(settings) == 0  # complete: only the temperature is fitted again
    assert load_settings(directory) == found
    assert "already complete" in capsys.readouterr().out
    # Networks that segment, in place of the reference: two vertebrae of the one validation scan.
    asked = []
    monkeypatch.setattr(calibration, "trained_networks", lambda _: lambda ct: asked.append(ct) or bones(ct))
    monkeypatch.setattr(calibration, "PREDICTED_COLUMNS_A_SCAN", 3)
    assert train_labelling(settings) == 0
    predicted = load_settings(directory)
    assert predicted["calibration_masks"] == "predicted"
    assert len(asked) == 3 >= predicted["calibration_columns"] >= 1
    del found["temperature"]
    (directory / "settings.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="expected the temperature"):
        load_levels(directory)
