"""Which prepared data a training takes: their folder, the cases left out, and those that take part."""

import dataclasses
import shutil

import pytest

from tests.learning import examples
from tests.learning.test_training import (  # noqa: F401 (a fixture)
    chosen_device,
    files_of,
    heatmap_settings,
)
from utils.learning import training, training_data
from utils.learning.prepared_data import SegmentationData
from utils.preparation.prepared import PHANTOM, write_sidecar
from utils.settings import load_settings


@dataclasses.dataclass(frozen=True)
class Alone:
    """What of a `Runtime` reading asks for."""

    is_chief: bool = True


STAGES = {
    "heatmap": (examples.write_heatmap_stage, training_data.read_heatmap_splits),
    "segmentation": (examples.write_segmentation_stage, training_data.read_segmentation_splits),
}
each_stage = pytest.mark.parametrize("stage", list(STAGES))


def folder_of(stage, work_dir, **changes):
    place = {"work_dir": work_dir, "preset": "small", "spacing_mm": 2.0, **changes}
    target = {"target": "spine"} if stage == "heatmap" else {}
    return training_data.prepared_folder(stage, **{**target, **place})


def keys_of(split):
    """The cases of a split, of which the segmentation stage has one item a vertebra."""
    if isinstance(split, SegmentationData):
        return sorted({vertebra.case for vertebra in split.vertebrae})
    return [case.key for case in split]


# The folder


@each_stage
def test_data_are_known_by_their_spacing_not_by_the_word_of_a_preset(tmp_path, stage):
    STAGES[stage][0](tmp_path, preset="full")
    folder, facts = folder_of(stage, tmp_path)
    assert folder == tmp_path / stage / "2mm"
    more = {"target": "spine", "heatmap_shape": list(examples.HEATMAP_SHAPE)} if stage == "heatmap" else {}
    assert facts == {"spacing_mm": 2.0, **more}


@each_stage
def test_the_command_that_prepares_the_data_is_named(tmp_path, stage):
    command = f"python pre_processing_{stage}.py --work-dir {tmp_path} --preset"
    usual = stage == "segmentation"  # what a preset says, and another word of it
    spine = "" if usual else " --target spine"
    for how, options in (
        ({}, f"small{spine}" + " --spacing-mm 2" * (not usual)),
        ({"preset": "full"}, f"full{spine} --spacing-mm 2"),
        ({"preset": "paper", "spacing_mm": 1.0}, "paper"),
    ):
        with pytest.raises(ValueError, match="expected prepared data, found none") as caught:
            folder_of(stage, tmp_path, **how)
        assert str(caught.value).endswith(f"; run `{command} {options}`.")


@each_stage
def test_a_folder_that_holds_data_of_another_spacing_is_refused(tmp_path, stage):
    shutil.copytree(STAGES[stage][0](tmp_path), tmp_path / stage / "1mm")
    with pytest.raises(ValueError, match=r"1mm: expected data of 1 mm, found data of 2.0 mm"):
        folder_of(stage, tmp_path, spacing_mm=1.0)


@pytest.mark.parametrize("wanted, other", [("centres", "spine"), ("spine", "centres")])
def test_data_of_the_other_target_are_refused(tmp_path, wanted, other):
    folder = examples.write_heatmap_stage(tmp_path)
    if other == "centres":
        path = folder / "settings.json"
        path.write_text(path.read_text().replace('"target": "spine"', '"target": "centres"'))
    with pytest.raises(ValueError) as caught:
        folder_of("heatmap", tmp_path, target=wanted)
    said = str(caught.value)
    found = f"expected data for the target '{wanted}', found data for '{other}'; run `python pre_"
    assert said.startswith(f"{folder}: {found}")
    assert said.endswith(f", or train with --target {other}.")
    folder_of("heatmap", tmp_path, target=other)


def test_data_older_than_the_target_are_those_of_the_spine(tmp_path):
    path = examples.write_heatmap_stage(tmp_path) / "settings.json"
    path.write_text(path.read_text().replace('  "target": "spine",\n', ""))
    assert "target" not in path.read_text()
    assert folder_of("heatmap", tmp_path)[1]["target"] == "spine"


# Cases


@each_stage
def test_cases_are_left_out_by_key_or_pattern(tmp_path, stage):
    write, read = STAGES[stage]
    folder = write(tmp_path)
    for exclude, expected in (
        ((), (["sub-a", "sub-b"], ["sub-c"])),
        (("sub-a",), (["sub-b"], ["sub-c"])),
        (("sub-[bc]",), (["sub-a"], [])),
        (("sub-b*", "sub-c"), (["sub-a"], [])),
    ):
        data, held_out, bad = read(folder, Alone(), exclude=exclude)
        assert (keys_of(data), keys_of(held_out), bad) == (*expected, [])


@each_stage
def test_a_pattern_that_belongs_to_no_case_is_refused_in_one_line(tmp_path, stage):
    write, read = STAGES[stage]
    folder = write(tmp_path)
    with pytest.raises(ValueError, match="--exclude") as caught:
        read(folder, Alone(), exclude=("sub-a", "sub-x*"))
    text = f"keys or patterns of cases in {folder}, received 'sub-x*'; found sub-a, sub-b, sub-c."
    assert str(caught.value) == f"--exclude: expected {text}"


def test_few_of_many_cases_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"found k0, k1, k2, k3, \.\.\.\."):
        training_data.excluded_cases([f"k{number}" for number in range(9)], ["none"], tmp_path)


@each_stage
def test_leaving_all_out_is_refused(tmp_path, stage):
    write, read = STAGES[stage]
    folder = write(tmp_path)
    with pytest.raises(ValueError, match="expected prepared cases, found none; 3 are left out by --exclude"):
        read(folder, Alone(), exclude=("sub-*",))


@each_stage
def test_a_bad_case_that_is_left_out_is_not_bad(tmp_path, stage):
    write, read = STAGES[stage]
    folder = write(tmp_path)
    kind = "ct" if stage == "heatmap" else "msk"
    (folder / "training" / f"sub-b_{kind}.nii").write_bytes(b"no scan")
    assert len(read(folder, Alone())[2]) == 1
    data, _, bad = read(folder, Alone(), exclude=("sub-b",))
    assert keys_of(data) == ["sub-a"] and bad == []


def test_patterns_of_another_training_may_belong_to_no_case(tmp_path):
    folder = examples.write_segmentation_stage(tmp_path)
    also = {"also_without": ("sub-x", "sub-a")}
    data, held_out, _ = training_data.read_segmentation_splits(folder, Alone(), exclude=("sub-c",), **also)
    assert (keys_of(data), keys_of(held_out)) == (["sub-b"], [])


# Those that take part


def with_a_mask_alone(tmp_path):
    """The segmentation stage with sub-a a phantom and sub-b a mask without a CT."""
    folder = examples.write_segmentation_stage(tmp_path)
    training_folder = folder / "training"
    (training_folder / "sub-b_ct.nii").unlink()
    for key, kinds, how in (("sub-a", ("ct", "msk"), {"origin": PHANTOM}), ("sub-b", ("msk",), {})):
        made = [training_folder / f"{key}_{kind}.nii" for kind in kinds]
        write_sidecar(training_folder / f"{key}_prepared.json", {}, {}, made, **how)
    return training_data.read_segmentation_splits(folder, Alone())[:2]


@pytest.mark.parametrize(
    "mixture, expected",
    [
        (None, ["sub-a"]),  # a mask alone serves for drawn images only
        ((1, 1, 1, 1), ["sub-a", "sub-b"]),
        ((1, 1, 1, 0), ["sub-a"]),
        ((0, 1, 0, 1), ["sub-b"]),
    ],
)
def test_cases_take_part_that_examples_are_made_of(tmp_path, mixture, expected):
    data, held_out = with_a_mask_alone(tmp_path)
    settings = examples.training_settings(tmp_path, mixture=mixture)
    found = training_data.case_facts(data, held_out, settings)
    assert found == {"training_cases": expected, "validation_cases": ["sub-c"]}


def test_the_facts_of_heatmap_cases(tmp_path):
    cases, held_out, _ = training_data.read_heatmap_splits(examples.write_heatmap_stage(tmp_path), Alone())
    found = training_data.case_facts(cases, held_out, heatmap_settings(tmp_path))
    assert found == {"training_cases": ["sub-a", "sub-b"], "validation_cases": ["sub-c"]}


# Several experiments in one work folder


def test_two_experiments_stand_side_by_side(tmp_path, capsys):
    examples.write_heatmap_stage(tmp_path)
    run = {"epochs": 1, "filters": (2, 2), "tensorboard": False}
    assert training.train_heatmap(heatmap_settings(tmp_path, **run)) == 0
    first = tmp_path / "models" / "heatmap"
    before = files_of(first)
    fold = {"name": "fold-b", "exclude": ("sub-b",), "learning_rate": 1e-3}
    assert training.train_heatmap(heatmap_settings(tmp_path, **run, **fold)) == 0
    assert sorted(path.name for path in first.parent.iterdir()) == ["fold-b", "heatmap"]
    assert files_of(first) == before
    found = [load_settings(tmp_path / "models" / name) for name in ("heatmap", "fold-b")]
    assert [saved["training_cases"] for saved in found] == [["sub-a", "sub-b"], ["sub-a"]]
    assert [saved["validation_cases"] for saved in found] == [["sub-c"], ["sub-c"]]
    # The same cases by another pattern go on; other cases are another run.
    again = heatmap_settings(tmp_path, **run, **{**fold, "exclude": ("*-b",)})
    assert training.train_heatmap(again) == 0
    assert "already complete" in capsys.readouterr().out
    other = heatmap_settings(tmp_path, **run, **{**fold, "exclude": ()})
    assert training.train_heatmap(other) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path / 'models' / 'fold-b'}: expected a run with the same settings" in said
    assert "other values of training_cases;" in said and said.count("\n") == 1
