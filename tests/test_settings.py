"""Settings: the command line names every field, presets, files, and the exit status of a wrong one."""

import dataclasses
import inspect
import json
import math
import re
from pathlib import Path

import pytest

from utils import settings as module
from utils.augmentation_settings import HEATMAP_AUGMENTATION
from utils.command_line import settings_from_command_line
from utils.presets import PRESETS, preset_settings
from utils.settings import (
    AugmentationSettings,
    DataSettings,
    DistillationSettings,
    EvaluationSettings,
    HeatmapAugmentationSettings,
    HeatmapPreparationSettings,
    HeatmapTrainingSettings,
    InferenceSettings,
    LabellingTrainingSettings,
    SegmentationPreparationSettings,
    SegmentationTrainingSettings,
    load_settings,
    save_settings,
    shard_numbers,
    worker_count,
)

PROJECT = Path(__file__).resolve().parents[1]
OF_NO_STAGE = (
    *("AugmentationSettings", "HeatmapAugmentationSettings", "CheckedSettings"),
    *("PreparationSettings", "RunSettings", "TrainingSettings"),
)
STAGES = [
    value
    for name, value in inspect.getmembers(module, dataclasses.is_dataclass)
    if name.endswith("Settings") and name not in OF_NO_STAGE
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
    source = "".join(inspect.getsource(kind) for kind in stage.__mro__[:-1])
    for field in dataclasses.fields(stage):
        # Positional arguments are shown by their type alone, and "from" is no name for a field.
        option = "from" if field.name == "corrections" else field.name
        assert field.name == "inputs" or "--" + option.replace("_", "-") in text
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


#: A wrong value of a field, and what is expected instead.
OUT_OF_BOUNDS = [
    (DataSettings, "seed", -1, "a whole number of 0 or more, up to 4294967295"),
    (DataSettings, "seed", 2**32, "a whole number of 0 or more, up to 4294967295"),
    (DataSettings, "connections", 0, "a whole number of 1 or more"),
    (DataSettings, "workers", -1, "a whole number of 0 or more"),
    (DataSettings, "phantoms", (1, -1, 0), "3 values, not all 0, each a whole number of 0 or more"),
    (DataSettings, "phantoms", (0, 0, 0), "3 values, not all 0, each a whole number of 0 or more"),
    (HeatmapPreparationSettings, "heatmap_shape", (64, 63, 128), "3 values, each a positive multiple of 2"),
    (HeatmapPreparationSettings, "heatmap_shape", (64, 0, 128), "3 values, each a positive multiple of 2"),
    (HeatmapPreparationSettings, "drawn", (1, -1), "2 values, each a whole number of 0 or more"),
    (HeatmapPreparationSettings, "trunks", -1, "a whole number of 0 or more"),
    (HeatmapPreparationSettings, "shard", "3/2", "i/n with i from 1 to n, such as 2/8"),
    (SegmentationPreparationSettings, "spacing_mm", 0.0, "a number of 0.1 or more"),
    (SegmentationPreparationSettings, "spacing_mm", math.nan, "a number of 0.1 or more"),
    (SegmentationPreparationSettings, "spacing_mm", math.inf, "a number of 0.1 or more"),
    (SegmentationPreparationSettings, "margin_mm", -1.0, "a number of 0 or more"),
    (HeatmapTrainingSettings, "accumulate", 0, "a whole number of 1 or more"),
    (HeatmapTrainingSettings, "moving_average", 1.0, "a number of 0 or more, below 1"),
    (HeatmapTrainingSettings, "stop_after", -1, "a whole number of 0 or more"),
    (HeatmapTrainingSettings, "plateau_after", -1, "a whole number of 0 or more"),
    (HeatmapTrainingSettings, "plateau_factor", 0.0, "a number of 0.01 or more, up to 1"),
    (HeatmapTrainingSettings, "save_minutes", -1.0, "a number of 0 or more"),
    (HeatmapTrainingSettings, "filters", (8,), "2 or more values, each a whole number of 1 or more"),
    (HeatmapTrainingSettings, "filters", (8, 0), "2 or more values, each a whole number of 1 or more"),
    (HeatmapTrainingSettings, "sigma_voxels", 0.0, "a number over 0"),
    (HeatmapTrainingSettings, "shift_voxels", -1.0, "a number of 0 or more"),
    (LabellingTrainingSettings, "none_share", 1.5, "a number of 0 or more, up to 1"),
    (LabellingTrainingSettings, "none_least_mm", 0.0, "a number over 0"),
    (LabellingTrainingSettings, "jitter_mm", -1.0, "a number of 0 or more"),
    (LabellingTrainingSettings, "dropout", 1.0, "a number of 0 or more, below 1"),
    (LabellingTrainingSettings, "patch_voxels", 0, "a whole number of 1 or more"),
    (LabellingTrainingSettings, "cut_share", -0.5, "a number of 0 or more, up to 1"),
    (LabellingTrainingSettings, "cut_least_mm", (1.0, 0.0, 1.0), "3 values, each a number over 0"),
    (
        LabellingTrainingSettings,
        "origins",
        (0.0, 0.0, 0.0),
        "3 values, not all 0, each a number of 0 or more",
    ),
    (HeatmapTrainingSettings, "crop_voxels", (64, 96, 95), "3 values, each a positive multiple of 2"),
    (HeatmapTrainingSettings, "crop_voxels", (64, 96, 72), "3 values, each a positive multiple of 16"),
    (HeatmapTrainingSettings, "sigma_mm", 0.0, "a number over 0"),
    (HeatmapTrainingSettings, "anywhere_share", 1.5, "a number of 0 or more, up to 1"),
    (HeatmapTrainingSettings, "cut_share", -0.5, "a number of 0 or more, up to 1"),
    (HeatmapTrainingSettings, "cut_least_mm", (1.0, 0.0, 1.0), "3 values, each a number over 0"),
    (
        HeatmapTrainingSettings,
        "origins",
        (0.0, 0.0, 0.0),
        "3 values, not all 0, each a number of 0 or more",
    ),
    (HeatmapTrainingSettings, "batch_size", -2, "a whole number of 1 or more"),
    (HeatmapTrainingSettings, "norm_momentum", 1.0, "a number of 0 or more, below 1"),
    (SegmentationTrainingSettings, "epochs", 0, "a whole number of 1 or more"),
    (SegmentationTrainingSettings, "examples_per_epoch", -1, "a whole number of 0 or more"),
    (SegmentationTrainingSettings, "validate_every", 0, "a whole number of 1 or more"),
    (SegmentationTrainingSettings, "learning_rate", -1.0, "a number over 0"),
    (SegmentationTrainingSettings, "final_learning_rate", -1e-9, "a number of 0 or more"),
    (SegmentationTrainingSettings, "patch_voxels", 0, "a whole number of 1 or more"),
    (SegmentationTrainingSettings, "patch_voxels", 60, "a positive multiple of 8"),
    (SegmentationTrainingSettings, "shift_mm", -5.0, "a number of 0 or more"),
    (SegmentationTrainingSettings, "empty_memory_probability", 1.5, "a number of 0 or more, up to 1"),
    (
        SegmentationTrainingSettings,
        "patch_shares",
        (1.0, -1.0, 1.0),
        "3 values, not all 0, each a number of 0 or more",
    ),
    (
        SegmentationTrainingSettings,
        "mixture",
        (0.0, 0.0, 0.0, 0.0),
        "4 values, not all 0, each a number of 0 or more",
    ),
    (DistillationSettings, "methods", (), "one method or more"),
    (DistillationSettings, "temperatures", (), "1 or more values, each a number over 0"),
    (DistillationSettings, "temperatures", (0.0,), "values, each a number over 0"),
    (DistillationSettings, "distillation_weight", 0.0, "a number over 0, up to 1"),
    (DistillationSettings, "distillation_weight", 1.5, "a number over 0, up to 1"),
    (DistillationSettings, "epochs", 0, "a whole number of 1 or more"),
    (InferenceSettings, "heat_threshold", 1.5, "a number over 0, up to 1"),
    (InferenceSettings, "heat_threshold", 0.0, "a number over 0, up to 1"),
    (InferenceSettings, "max_steps", 0, "a whole number of 1 or more"),
    (InferenceSettings, "max_vertebrae", 0, "a whole number of 1 or more, up to 254"),
    (InferenceSettings, "max_vertebrae", 255, "a whole number of 1 or more, up to 254"),
    (InferenceSettings, "min_volume_mm3", -1.0, "a number of 0 or more"),
    (EvaluationSettings, "found_dice", 0.0, "a number over 0, up to 1"),
    (EvaluationSettings, "found_dice", 1.5, "a number over 0, up to 1"),
    (EvaluationSettings, "resamples", 0, "a whole number of 1 or more"),
]
WRONG_AUGMENTATIONS = [
    ("flip_probability", -0.1, "a number of 0 or more, up to 1"),
    ("gain", (-1.0, 1.0), "2 values from low to high, each a number of 0 or more"),
    ("offset", (0.5, -0.5), "2 values from low to high, each a number that is finite"),
    ("zoom_p", (2.0, 1.0), "2 values from low to high, each a number over 0"),
    ("zoom_r", (0.0, 1.0), "2 values from low to high, each a number over 0"),
    ("zoom_i", (1.0, math.inf), "2 values from low to high, each a number over 0"),
    ("rotation_degrees", 181.0, "a number of 0 or more, up to 180"),
    ("noise_probability", 1.1, "a number of 0 or more, up to 1"),
    ("noise_sigma", (-0.1, 0.1), "2 values from low to high, each a number of 0 or more"),
    ("blur_probability", math.nan, "a number of 0 or more, up to 1"),
]


def told_by(stage, arguments, capsys):
    """What a wrong command line says on the standard error."""
    with pytest.raises(SystemExit) as ended:
        settings_from_command_line(stage, arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def words_of(value):
    return list(map(str, value)) if isinstance(value, tuple) else [str(value)]


@pytest.mark.parametrize(("stage", "name", "value", "expected"), OUT_OF_BOUNDS)
def test_a_value_out_of_bounds_is_refused_and_named(stage, name, value, expected, capsys):
    with pytest.raises(ValueError) as caught:
        stage(**{name: value})
    assert str(caught.value) == f"{name}: expected {expected}, received {value!r}."
    option = f"--{name.replace('_', '-')}"
    said = told_by(stage, [option, *words_of(value)], capsys)
    assert said == f"{option}: expected {expected}, received {value!r}.\n"


@pytest.mark.parametrize(
    ("stage", "kind", "sigma"),
    [
        (SegmentationTrainingSettings, AugmentationSettings, "blur_sigma_mm"),
        (HeatmapTrainingSettings, HeatmapAugmentationSettings, "blur_sigma_voxels"),
    ],
)
def test_a_range_of_the_augmentation_is_refused_and_named(stage, kind, sigma, capsys):
    wrong_blur = (sigma, (-0.5, 1.0), "2 values from low to high, each a number of 0 or more")
    for name, value, expected in (*WRONG_AUGMENTATIONS, wrong_blur):
        with pytest.raises(ValueError) as caught:
            kind(**{name: value})
        assert str(caught.value) == f"{name}: expected {expected}, received {value!r}."
        option = f"--augmentation.{name.replace('_', '-')}"
        said = told_by(stage, [option, *words_of(value)], capsys)
        assert said == f"{option}: expected {expected}, received {value!r}.\n"


def test_each_wrong_option_has_its_line(capsys):
    numbers = ["--learning-rate", "-1", "--patch-voxels", "0", "--shift-mm", "-5"]
    arguments = [*numbers, "--augmentation.zoom-p", "2", "1"]
    said = told_by(SegmentationTrainingSettings, arguments, capsys)
    options = [line.partition(":")[0] for line in said.splitlines()]
    assert sorted(options) == ["--augmentation.zoom-p", "--learning-rate", "--patch-voxels", "--shift-mm"]


def test_every_number_has_bounds():
    for kind in (*STAGES, AugmentationSettings, HeatmapAugmentationSettings):
        for field in dataclasses.fields(kind):
            if re.search(r"\b(int|float|Mixture)\b", field.type):
                assert "rule" in field.metadata, f"{kind.__name__}.{field.name}"


def test_the_ends_of_the_bounds_are_allowed():
    SegmentationTrainingSettings(
        shift_mm=0.0,
        final_learning_rate=0,
        patch_shares=(1, 0, 0),
        mixture=[0.0, 0.0, 0.0, 2.0],  # as JSON gives it
        patch_voxels=8,
        seed=2**32 - 1,
        empty_memory_probability=1,
        augmentation=AugmentationSettings(zoom_p=(1.0, 1.0), rotation_degrees=0.0, blur_sigma_mm=(0.0, 0.0)),
    )
    SegmentationTrainingSettings(filters=(2, 3), patch_voxels=2)
    HeatmapTrainingSettings(filters=(2, 3, 4), crop_voxels=(4, 8, 12), origins=(0, 0, 1), cut_share=1)
    HeatmapTrainingSettings(target="spine", filters=(2, 3), crop_voxels=(2, 2, 2))
    LabellingTrainingSettings(patch_voxels=1, none_share=1.0, dropout=0.0, jitter_mm=0.0, origins=(0, 1, 0))
    DistillationSettings(methods=("logits",), temperatures=(), distillation_weight=1.0)
    EvaluationSettings(found_dice=1.0, resamples=1)


@pytest.mark.parametrize("stage", ["heatmap", "labelling", "segmentation"])
def test_settings_of_the_networks_shipped_are_within_bounds(stage):
    found = load_settings(PROJECT / "models" / "starter" / stage)
    made = getattr(module, found["stage"])
    own = {field.name: found[field.name] for field in dataclasses.fields(made) if field.name in found}
    augmentation = type(made().augmentation)(**own["augmentation"])
    assert made(**{**own, "augmentation": augmentation}).epochs == found["epochs"]


def test_values_of_another_type_are_refused():
    for name, value in (("epochs", 2.5), ("epochs", "2"), ("shift_mm", None), ("filters", 8)):
        with pytest.raises(ValueError, match=f"^{name}: expected "):
            SegmentationTrainingSettings(**{name: value})
    with pytest.raises(ValueError, match=r"^shard: expected i/n"):
        InferenceSettings(shard=2)


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
def test_small_is_full_at_2_mm_with_patches_of_56_and_student_filters(arguments):
    prepared = settings_from_command_line(SegmentationPreparationSettings, arguments)
    trained = settings_from_command_line(SegmentationTrainingSettings, arguments)
    assert (prepared.preset, prepared.spacing_mm) == ("small", 2.0)
    assert (trained.preset, trained.patch_voxels, trained.filters) == ("small", 56, (8, 16, 32, 64))
    assert trained.patch_kinds == "centred"


@pytest.mark.parametrize(
    ("arguments", "preset"),
    [
        (["--preset", "small", "--preset", "full"], "full"),
        (["--preset=small", "--preset", "full"], "full"),
        (["--preset", "full", "--preset=small"], "small"),
        (["--preset", "paper", "--epochs", "3", "--preset", "small"], "small"),
        (["--preset", "small", "--start-from=--preset=full"], "small"),
    ],
)
def test_the_last_preset_wins_whole(arguments, preset):
    trained = settings_from_command_line(SegmentationTrainingSettings, arguments)
    kept = {"epochs": trained.epochs, "start_from": trained.start_from}
    assert trained == preset_settings(SegmentationTrainingSettings, preset, **kept)
    assert trained.patch_voxels == {"full": 128, "small": 56}[preset]


def test_paper_has_the_published_constants():
    trained = preset_settings(SegmentationTrainingSettings, "paper")
    assert (trained.network, trained.patch_kinds) == ("unet", "paper")
    assert (trained.patch_voxels, trained.filters) == (128, (16, 32, 64, 128))
    assert (trained.epochs, trained.learning_rate, trained.validate_every) == (45, 1e-3, 5)
    assert (trained.fp_weight_schedule, trained.empty_memory_probability) == ("ramp", 0.3)
    for stage in (HeatmapTrainingSettings, SegmentationTrainingSettings, DistillationSettings):
        assert preset_settings(stage, "paper").precision == "float32"
    prepared = preset_settings(HeatmapPreparationSettings, "paper")
    assert (prepared.target, prepared.spacing_mm, prepared.heatmap_shape) == ("spine", 1.0, (64, 64, 128))
    heatmap = preset_settings(HeatmapTrainingSettings, "paper")
    assert (heatmap.target, heatmap.spacing_mm, heatmap.norm) == ("spine", 1.0, "batch")
    assert (heatmap.filters, heatmap.sigma_voxels, heatmap.shift_voxels) == ((8, 16, 32), 10, 20)
    assert (heatmap.epochs, heatmap.batch_size, heatmap.learning_rate) == (300, 4, 1e-3)
    assert heatmap.augmentation == HEATMAP_AUGMENTATION


@pytest.mark.parametrize("preset", ["full", "small", "starter"])
def test_the_other_presets_look_for_centres_at_3_mm(preset):
    for stage in (HeatmapPreparationSettings, HeatmapTrainingSettings):
        chosen = preset_settings(stage, preset)
        assert (chosen.target, chosen.spacing_mm) == ("centres", 3.0)
    labelling = preset_settings(LabellingTrainingSettings, preset)
    # 81 mm to each side in every preset: what is seen of the ribs decides.
    assert (labelling.spacing_mm, labelling.patch_voxels, labelling.outside) == (3.0, 54, "air")
    assert labelling.filters == LabellingTrainingSettings().filters and 0 < labelling.none_share < 1


def test_options_go_before_the_preset_wherever_they_stand():
    for arguments in (["--epochs", "3", "--preset", "small"], ["--preset", "small", "--epochs", "3"]):
        trained = settings_from_command_line(SegmentationTrainingSettings, arguments)
        assert (trained.epochs, trained.patch_voxels) == (3, 56)


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


def test_the_blur_of_earlier_heatmap_networks_is_read_in_voxels(tmp_path):
    save_settings(HeatmapTrainingSettings(), tmp_path)
    path = tmp_path / "settings.json"
    saved = load_settings(tmp_path)
    assert saved["augmentation"]["blur_sigma_voxels"] == [0.2, 0.6]
    path.write_text(path.read_text().replace("blur_sigma_voxels", "blur_sigma_mm"))
    assert load_settings(tmp_path) == saved
    save_settings(SegmentationTrainingSettings(), tmp_path)
    assert load_settings(tmp_path)["augmentation"]["blur_sigma_mm"] == [0.5, 1.5]


@pytest.mark.parametrize("stage", [HeatmapPreparationSettings, HeatmapTrainingSettings])
def test_the_target_of_earlier_heatmap_networks_is_the_spine(tmp_path, stage):
    path = save_settings(stage(), tmp_path)
    saved = load_settings(tmp_path)
    assert saved["target"] == "centres"
    path.write_text(json.dumps({name: value for name, value in saved.items() if name != "target"}))
    assert load_settings(tmp_path) == {**saved, "target": "spine"}
    save_settings(SegmentationTrainingSettings(), tmp_path)
    assert "target" not in load_settings(tmp_path)


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


def test_starter_is_small_on_a_mixture():
    starter, small = (preset_settings(SegmentationTrainingSettings, name) for name in ("starter", "small"))
    same = ("patch_voxels", "batch_size", "norm_momentum")
    assert [getattr(starter, name) for name in same] == [getattr(small, name) for name in same]
    assert small.mixture is None and sum(starter.mixture) == pytest.approx(1.0)
    # A last stage.
    assert (starter.learning_rate, starter.final_learning_rate) == (2e-3, 5e-5)
    for stage in (HeatmapTrainingSettings, SegmentationTrainingSettings):
        averages = [preset_settings(stage, name).moving_average for name in ("small", "starter")]
        assert averages[0] == 0 and 0.9 < averages[1] < 1
    prepared = preset_settings(SegmentationPreparationSettings, "starter")
    assert (prepared.spacing_mm, prepared.label_maps) == (2.0, True)
    assert min(preset_settings(HeatmapPreparationSettings, "starter").drawn) > 0


def test_a_mixture_is_read_from_the_command_line():
    arguments = ["--preset", "starter", "--mixture", "1", "0", "0", "0"]
    assert settings_from_command_line(SegmentationTrainingSettings, arguments).mixture == (1, 0, 0, 0)
    assert settings_from_command_line(SegmentationTrainingSettings, arguments[:2]).mixture[1] > 0
