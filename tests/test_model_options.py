"""The options that name models: those of their own folder, and those that a later stage takes."""

from pathlib import Path

import pytest

from utils.command_line import settings_from_command_line
from utils.settings import (
    DistillationSettings,
    HeatmapTrainingSettings,
    InferenceSettings,
    SegmentationTrainingSettings,
)

TRAININGS = {
    HeatmapTrainingSettings: "heatmap",
    SegmentationTrainingSettings: "segmentation",
    DistillationSettings: "student",
}


@pytest.mark.parametrize("stage", TRAININGS)
def test_a_training_has_a_name_and_leaves_cases_out(stage):
    plain = settings_from_command_line(stage, [])
    assert plain.name == TRAININGS[stage] and plain.exclude == ()
    changed = settings_from_command_line(stage, ["--name", "fold-1", "--exclude", "sub-a", "sub-real-*"])
    assert changed.name == "fold-1" and changed.exclude == ("sub-a", "sub-real-*")


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "/a", "a\\b", " "])
def test_a_name_is_one_folder(name, capsys):
    with pytest.raises(SystemExit) as end:
        settings_from_command_line(HeatmapTrainingSettings, ["--name", name])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("--name: expected a name for a folder")
    with pytest.raises(ValueError, match="name: expected a name for a folder"):
        SegmentationTrainingSettings(name=name)


@pytest.mark.parametrize("option", ["--segmentation", "--model"])
@pytest.mark.parametrize("heatmap", ["--heatmap", "--heatmap-model"])
def test_inference_takes_networks_by_either_option(option, heatmap):
    found = settings_from_command_line(InferenceSettings, ["scan", option, "a", heatmap, "b"])
    assert (found.segmentation, found.heatmap) == (Path("a"), Path("b"))


@pytest.mark.parametrize("option", ["--segmentation", "--teacher"])
def test_distillation_takes_its_teacher_by_either_option(option):
    assert settings_from_command_line(DistillationSettings, [option, "a"]).segmentation == Path("a")


@pytest.mark.parametrize(
    "stage, preset, spacing_mm",
    [
        *((SegmentationTrainingSettings, *pair) for pair in (("full", 1.0), ("paper", 1.0))),
        *((SegmentationTrainingSettings, *pair) for pair in (("small", 2.0), ("starter", 2.0))),
        *((HeatmapTrainingSettings, *pair) for pair in (("full", 3.0), ("paper", 1.0))),
        *((HeatmapTrainingSettings, *pair) for pair in (("small", 3.0), ("starter", 3.0))),
    ],
)
def test_presets_say_which_data_they_train_on(stage, preset, spacing_mm):
    assert settings_from_command_line(stage, ["--preset", preset]).spacing_mm == spacing_mm
