"""Settings: the command line names every field, presets, files, and the exit status of a wrong one."""

import dataclasses
import inspect
import json
import re
from pathlib import Path

import pytest

from utils import settings as module
from utils.settings import (
    PRESETS,
    DataSettings,
    EvaluationSettings,
    HeatmapTrainingSettings,
    InferenceSettings,
    SegmentationPreparationSettings,
    SegmentationTrainingSettings,
    load_settings,
    preset_settings,
    save_settings,
    settings_from_command_line,
    shard_numbers,
    worker_count,
)

STAGES = [
    value
    for name, value in inspect.getmembers(module, dataclasses.is_dataclass)
    if name.endswith("Settings") and name not in ("AugmentationSettings", "RunSettings")
]


def letters(text):
    """The text without colours, line breaks, frames and spaces, so that wrapping does not matter."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"\x1b\[[0-9;]*m", "", text).lower())


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_help_names_every_field_and_says_what_it_is(stage, capsys):
    with pytest.raises(SystemExit) as ended:
        settings_from_command_line(stage, ["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(stage):
        # Positional arguments are shown by their type alone.
        assert field.name == "inputs" or "--" + field.name.replace("_", "-") in text
        source = "".join(inspect.getsource(kind) for kind in stage.__mro__[:-1])
        described = re.search(rf'^    {field.name}: .*\n    """(.*)$', source, re.MULTILINE)
        assert described, f"{stage.__name__}.{field.name} has no description"
        assert letters(described[1]) in letters(text)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_every_stage_takes_a_seed(stage):
    assert "seed" in {field.name for field in dataclasses.fields(stage)}


@pytest.mark.parametrize(
    ("stage", "arguments"),
    [
        (DataSettings, ["--phantoms", "1", "2"]),
        (DataSettings, ["--split", "training-set"]),
        (DataSettings, ["--no-such-option", "1"]),
        (SegmentationTrainingSettings, ["--preset", "huge"]),
        (SegmentationTrainingSettings, ["--epochs", "many"]),
        (EvaluationSettings, ["--found-dice", "half"]),
        (InferenceSettings, ["a.nii.gz", "--heat-threshold", "warm"]),
    ],
)
def test_a_wrong_command_line_ends_with_status_2(stage, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        settings_from_command_line(stage, arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("stage", "arguments", "said"),
    [
        (SegmentationTrainingSettings, ["--epochs", "0"], "--epochs: expected 1 or more, received 0."),
        (HeatmapTrainingSettings, ["--batch-size", "-2"], "--batch-size: expected 1 or more, received -2."),
        (DataSettings, ["--seed", "-1"], "--seed: expected 0 or more, received -1."),
        (SegmentationPreparationSettings, ["--spacing-mm", "0"], "--spacing-mm: expected 0.1 or more"),
        (SegmentationPreparationSettings, ["--spacing-mm", "nan"], "--spacing-mm: expected 0.1 or more"),
    ],
)
def test_numbers_out_of_range_end_with_status_2(stage, arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        settings_from_command_line(stage, arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(said)


def test_command_line_of_the_contract():
    data = settings_from_command_line(
        DataSettings,
        ["--source=phantom", "--data-dir=data", "--phantoms", "12", "3", "5", "--seed=0"],
    )
    assert data == DataSettings(source="phantom")
    inference = settings_from_command_line(
        InferenceSettings,
        [
            "a.nii.gz",
            "b",
            "--work-dir",
            "work",
            "--output",
            "predictions",
            "--first-label",
            "L1",
            "--skip-bad",
        ],
    )
    assert inference.inputs == (Path("a.nii.gz"), Path("b"))
    assert (inference.first_label, inference.skip_bad) == ("L1", True)
    evaluation = settings_from_command_line(
        EvaluationSettings,
        ["--data-dir", "data", "--split", "test", "--predictions", "predictions", "--output", "evaluation"],
    )
    assert evaluation == EvaluationSettings()


def test_full_is_the_default_and_changes_nothing():
    assert PRESETS["full"] == {}
    assert settings_from_command_line(SegmentationTrainingSettings, []) == SegmentationTrainingSettings()
    assert SegmentationTrainingSettings().preset == "full"


@pytest.mark.parametrize("arguments", [["--preset", "small"], ["--preset=small"]])
def test_small_is_full_at_2_mm_with_patches_of_64_and_student_filters(arguments):
    prepared = settings_from_command_line(SegmentationPreparationSettings, arguments)
    trained = settings_from_command_line(SegmentationTrainingSettings, arguments)
    assert (prepared.preset, prepared.spacing_mm) == ("small", 2.0)
    assert (trained.preset, trained.patch_voxels, trained.filters) == ("small", 64, (8, 16, 32, 64))
    assert trained.patch_kinds == "walk"


def test_paper_has_the_published_constants():
    trained = preset_settings(SegmentationTrainingSettings, "paper")
    assert (trained.patch_kinds, trained.patch_voxels, trained.filters) == ("paper", 128, (16, 32, 64, 128))
    assert (trained.epochs, trained.learning_rate, trained.validate_every) == (45, 1e-3, 5)
    assert (trained.fp_weight_schedule, trained.empty_memory_probability) == ("ramp", 0.3)
    heatmap = preset_settings(HeatmapTrainingSettings, "paper")
    assert (heatmap.filters, heatmap.sigma_voxels, heatmap.epochs, heatmap.batch_size) == (
        (8, 16, 32),
        10,
        300,
        4,
    )


def test_options_go_before_the_preset_wherever_they_stand():
    for arguments in (["--epochs", "3", "--preset", "small"], ["--preset", "small", "--epochs", "3"]):
        trained = settings_from_command_line(SegmentationTrainingSettings, arguments)
        assert (trained.epochs, trained.patch_voxels) == (3, 64)


def test_every_preset_fits_every_stage():
    for preset in PRESETS:
        for stage in STAGES:
            if stage is not InferenceSettings:
                assert isinstance(preset_settings(stage, preset), stage)
    with pytest.raises(ValueError, match="received 'tiny'"):
        preset_settings(SegmentationTrainingSettings, "tiny")


def test_saved_settings_are_read_back_with_facts(tmp_path):
    chosen = preset_settings(SegmentationTrainingSettings, "small", epochs=2)
    path = save_settings(chosen, tmp_path / "deep" / "model", spacing_mm=2.0, data=tmp_path)
    assert [path] == list((tmp_path / "deep" / "model").iterdir())
    found = load_settings(tmp_path / "deep" / "model")
    assert found["stage"] == "SegmentationTrainingSettings"
    assert (found["epochs"], found["filters"], found["spacing_mm"]) == (2, [8, 16, 32, 64], 2.0)
    assert (found["work_dir"], found["data"]) == ("work", str(tmp_path))
    assert found["augmentation"]["zoom_i"] == [0.85, 1.15]


def test_settings_that_cannot_be_read_are_named(tmp_path):
    for text, found in ((None, "no such file"), ("{", "expected JSON"), (json.dumps([1]), "found list")):
        if text is not None:
            (tmp_path / "settings.json").write_text(text)
        with pytest.raises(ValueError, match=found) as caught:
            load_settings(tmp_path)
        assert str(tmp_path / "settings.json") in str(caught.value)


def test_worker_count():
    assert worker_count(3) == 3
    assert worker_count(0) >= 1
    with pytest.raises(ValueError, match="received -1"):
        worker_count(-1)


def test_a_shard_is_a_pair_of_numbers():
    assert [shard_numbers(text) for text in (None, "1/1", "2/8", "8/8")] == [(1, 1), (1, 1), (2, 8), (8, 8)]
    for wrong in ("0/3", "4/3", "2", "1/0", "-1/3", "a/b", ""):
        with pytest.raises(ValueError, match=f"Expected i/n.*{re.escape(repr(wrong))}"):
            shard_numbers(wrong)


def test_a_wrong_shard_ends_with_status_2(capsys):
    with pytest.raises(SystemExit) as ended:
        settings_from_command_line(InferenceSettings, ["--shard", "3/2"])
    assert ended.value.code == 2
    assert "--shard" in capsys.readouterr().err


def test_starter_is_small_on_a_mixture():
    for stage in (HeatmapTrainingSettings, SegmentationTrainingSettings):
        starter, small = (preset_settings(stage, preset) for preset in ("starter", "small"))
        same = ("filters", "batch_size", "norm_momentum")
        assert [getattr(starter, name) for name in same] == [getattr(small, name) for name in same]
        assert small.mixture is None and sum(starter.mixture) == pytest.approx(1.0)
        assert small.moving_average == 0 and 0.9 < starter.moving_average < 1
        # The heatmap network learns at the same rates, the segmentation network in a gentle last stage.
        of_small = (small.learning_rate, small.final_learning_rate)
        rates = (5e-4, 5e-5) if stage is SegmentationTrainingSettings else of_small
        assert (starter.learning_rate, starter.final_learning_rate) == rates
    segmentation = preset_settings(SegmentationTrainingSettings, "starter")
    assert (segmentation.patch_voxels, segmentation.filters) == (64, (8, 16, 32, 64))
    assert sum(segmentation.walk_shares) == pytest.approx(1.0)
    prepared = preset_settings(SegmentationPreparationSettings, "starter")
    assert (prepared.spacing_mm, prepared.label_maps) == (2.0, True)


def test_a_mixture_is_read_from_the_command_line():
    arguments = ["--preset", "starter", "--mixture", "1", "0", "0", "0"]
    assert settings_from_command_line(SegmentationTrainingSettings, arguments).mixture == (1, 0, 0, 0)
    assert settings_from_command_line(SegmentationTrainingSettings, arguments[:2]).mixture[1] > 0
