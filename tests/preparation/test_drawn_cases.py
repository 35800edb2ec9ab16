"""Drawn scans beside those of the data set: what is drawn, what stays, and what goes."""

import dataclasses

import numpy as np
import pytest

from tests.imaging.examples import write_case
from tests.preparation.test_prepare import heatmap, names
from utils.preparation import drawn_cases, spine_case
from utils.preparation.prepare import prepare_heatmap
from utils.preparation.spine_case import read_spine
from utils.settings import HeatmapPreparationSettings
from utils.synthetic.drawn_scan import DrawnScan


@pytest.fixture
def drawn(monkeypatch):
    """Scans of a few voxels in place of true ones; gives (seed, number) of each that was drawn."""
    made = []

    def draw(seed, number, *, spacing_mm):
        made.append((seed, number))
        ct = np.full((4, 5, 6), number % 1000, np.int16)
        return DrawnScan(ct, spacing_mm, {20: np.array([1.0, 2.0, 3.0])})

    def draw_trunk(organs, seed, number, *, spacing_mm):
        return dataclasses.replace(draw(seed, number, spacing_mm=spacing_mm), kind=organs)

    monkeypatch.setattr(drawn_cases, "draw_scan", draw)
    monkeypatch.setattr(drawn_cases, "draw_trunk_scan", draw_trunk)
    monkeypatch.setattr(drawn_cases, "read_organ_map", lambda *paths: "organs")
    drawn_cases._organs.cache_clear()
    return made


def asked(**changes):
    return HeatmapPreparationSettings(**{"drawn": (3, 1), "seed": 7, "workers": 1, **changes})


def files_of(split, *keys):
    return [f"{split}/{key}_{end}" for key in keys for end in ("ct.nii", "spine.json")]


TRAINING = files_of("training", *(f"drawn-7-000000{n}" for n in range(3)))
WHOLE = [*TRAINING, *files_of("validation", "drawn-7-1000000")]


def test_scans_are_drawn_for_both_splits(tmp_path, drawn):
    drawn_cases.draw_cases(asked(), tmp_path)
    assert drawn == [(7, 0), (7, 1), (7, 2), (7, 1_000_000)]
    assert names(tmp_path) == WHOLE
    spine = read_spine(tmp_path / "training" / "drawn-7-0000002_spine.json")
    assert spine.codes == (20,) and spine.is_complete


def test_a_rerun_draws_what_is_missing_alone(tmp_path, drawn, capsys):
    drawn_cases.draw_cases(asked(), tmp_path)
    drawn.clear()
    drawn_cases.draw_cases(asked(), tmp_path)
    assert drawn == []
    (tmp_path / "training" / "drawn-7-0000001_spine.json").unlink()
    drawn_cases.draw_cases(asked(drawn=(4, 1)), tmp_path)
    assert drawn == [(7, 1), (7, 3)]
    assert "removed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, left, count",
    [
        ({"drawn": (2, 0)}, TRAINING[:4], 2),
        ({"drawn": (0, 0)}, [], 4),
        ({"target": "spine"}, [], 4),
        ({"seed": 8, "drawn": (1, 0)}, files_of("training", "drawn-8-0000000"), 4),
    ],
)
def test_scans_that_are_not_asked_for_are_removed(tmp_path, drawn, capsys, changes, left, count):
    drawn_cases.draw_cases(asked(), tmp_path)
    (tmp_path / "training" / "sub-a01_spine.json").write_text("of the data set")
    drawn_cases.draw_cases(asked(**changes), tmp_path)
    assert names(tmp_path) == sorted([*left, "training/sub-a01_spine.json"])
    said = f"{tmp_path}: {count} drawn scans that are not asked for are removed.\n"
    assert capsys.readouterr().out == said


def test_a_killed_run_leaves_no_half_case(tmp_path, drawn, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(spine_case, "write_text_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            drawn_cases.draw_cases(asked(), tmp_path)
    assert not list(tmp_path.rglob("*_spine.json"))
    folder = tmp_path / "training"
    for name in ("drawn-7-0000000_spine.json", "drawn-3-0000000_ct.nii"):  # asked for, and no longer
        (folder / f".{name}.77.part").write_text("half-written")
    drawn_cases.draw_cases(asked(), tmp_path)
    assert names(tmp_path) == WHOLE


def test_a_killed_process_is_named(tmp_path, monkeypatch):
    def killed(work, jobs, **how):
        return [(job, "a process that was killed") for job in jobs]

    monkeypatch.setattr(drawn_cases, "outcomes", killed)
    with pytest.raises(ValueError, match=r"drawn-7-0000000: expected to be drawn, found a process that was"):
        drawn_cases.draw_cases(asked(), tmp_path)


def test_shards_share_the_drawing(tmp_path, drawn):
    drawn_cases.draw_cases(asked(shard="1/2"), tmp_path)
    assert drawn == [(7, 0), (7, 2)]
    drawn_cases.draw_cases(asked(shard="2/2"), tmp_path)
    assert names(tmp_path) == WHOLE and len(drawn) == 4


def test_trunks_are_known_by_the_organs_that_they_are_drawn_from(tmp_path, drawn):
    organs = tuple(tmp_path / name for name in ("organs", "names", "vertebrae", "ct"))
    for path in organs:
        path.write_text(path.name)
    root = tmp_path / "work"
    settings = asked(drawn=(0, 0), organs=organs, trunks=2)
    drawn_cases.draw_cases(settings, root)
    before = names(root)
    assert len(before) == 4 and all(name.startswith("training/drawn-trunk-") for name in before)
    drawn_cases.draw_cases(settings, root)
    assert len(drawn) == 2 and names(root) == before
    organs[1].write_text("other names")
    drawn_cases.draw_cases(settings, root)
    assert len(drawn) == 4 and len(names(root)) == 4 and not set(names(root)) & set(before)


def test_drawn_scans_lie_beside_those_of_the_data_set(tmp_path, drawn, capsys):
    write_case(tmp_path / "data", "sub-a01")
    centres = {"target": "centres", "drawn": (2, 1)}
    assert prepare_heatmap(heatmap(tmp_path, **centres)) == 0
    root = tmp_path / "work" / "heatmap" / "1mm"
    own = ["settings.json", *(f"training/sub-a01_{end}" for end in ("ct.nii", "prepared.json", "spine.json"))]
    more = [*files_of("training", *(f"drawn-0-000000{n}" for n in range(2)))]
    assert names(root) == sorted([*own, *more, *files_of("validation", "drawn-0-1000000")])
    # A folder holds data of one target.
    assert prepare_heatmap(heatmap(tmp_path)) == 0
    assert "prepared with other settings; all cases are prepared again" in capsys.readouterr().out
    ends = ("ct.nii", "ctd.json", "prepared.json")
    assert names(root) == ["settings.json", *(f"training/sub-a01_{end}" for end in ends)]
    assert prepare_heatmap(heatmap(tmp_path, target="centres")) == 0
    assert names(root) == own


def test_organs_that_are_not_there_are_one_line(tmp_path, drawn, capsys):
    write_case(tmp_path / "data", "sub-a01")
    organs = (tmp_path / "none",) * 4
    assert prepare_heatmap(heatmap(tmp_path, target="centres", organs=organs, trunks=1)) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "none") in said and said.count("error: ") == 1
