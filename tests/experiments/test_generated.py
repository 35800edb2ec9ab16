"""Tests of experiments/generated.py: scans without a spine, and what was seen in them."""

import json

import pytest

from experiments import generated
from experiments.generated import phantom_steps, vertebrae_by_kind, write_scans_without_spine
from utils.imaging.nifti import read_ct
from utils.synthetic.no_spine import NO_SPINE_KINDS


def test_every_kind_is_drawn_and_what_is_there_stays(tmp_path):
    paths = write_scans_without_spine(tmp_path, of_a_kind=1)

    assert [path.name for path in paths] == [f"{kind}-0_ct.nii.gz" for kind in NO_SPINE_KINDS]
    assert all(read_ct(path).data.ndim == 3 for path in paths)
    paths[0].write_bytes(b"kept")
    assert write_scans_without_spine(tmp_path, of_a_kind=1) == paths
    assert paths[0].read_bytes() == b"kept"


def _predicted(folder, key, rows, *, no_spine):
    case = folder / "derivatives" / key
    case.mkdir(parents=True)
    (case / f"{key}_vertebrae.csv").write_text("label\n" + "L1\n" * rows)
    (case / f"{key}_quality.json").write_text(json.dumps({"no_spine": no_spine}))


def test_vertebrae_are_counted_by_kind(tmp_path):
    _predicted(tmp_path, "sub-thigh-0", 2, no_spine=False)
    _predicted(tmp_path, "sub-thigh-1", 3, no_spine=False)
    _predicted(tmp_path, "sub-head-0", 0, no_spine=True)

    assert vertebrae_by_kind(tmp_path) == {**dict.fromkeys(NO_SPINE_KINDS, 0), "thigh": 5}


@pytest.mark.parametrize(("rows", "no_spine"), [(0, False), (1, True)])
def test_a_scan_must_say_that_it_has_no_spine(tmp_path, rows, no_spine):
    _predicted(tmp_path, "sub-air-0", rows, no_spine=no_spine)

    with pytest.raises(ValueError, match=r"sub-air-0_vertebrae.csv: expected no_spine"):
        vertebrae_by_kind(tmp_path)


def test_both_ranges_have_seeds_of_their_own(tmp_path):
    commands = [str(phantom_steps(ranges, tmp_path, (), phantoms=40)[0]) for ranges in ("usual", "wide")]

    assert "--phantoms 0 0 40 --ranges usual --seed 7001" in commands[0]
    assert "--phantoms 0 0 40 --ranges wide --seed 7002" in commands[1]
    assert "--ranges wide --seed 7102" in str(phantom_steps("wide", tmp_path, (), phantoms=1, seed=7101)[0])


def test_one_phantom_lies_in_one_of_the_folders(tmp_path):
    found = [str(phantom_steps("usual", tmp_path, (), phantoms=count)[1]) for count in (1, 2)]
    assert ["VerSe19" in found[0], "VerSe20" in found[0]] == [True, False]
    assert ["VerSe19" in found[1], "VerSe20" in found[1]] == [True, True]


def test_tables_of_what_was_chosen(tmp_path, monkeypatch, capsys):
    """Steps do not run here: what they would leave is there already."""
    ran = []
    monkeypatch.setattr(generated, "run_steps", lambda steps, dry_run: ran.extend(map(str, steps)))
    for ranges in ("usual", "old"):
        folder = tmp_path / ranges / "evaluation"
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({**dict.fromkeys(generated.SCORES, 0.5), "extra": 3}))
    arguments = ["--folder", str(tmp_path), "--ranges", "usual", "old", "--seed", "7101", "--phantoms", "2"]

    assert generated.main([*arguments, "--of-a-kind", "0", "--options", "--batch-size 1"]) == 0

    table = capsys.readouterr().out
    assert "usual" in table and "old" in table and "wide" not in table and "no spine" not in table
    assert [line.split()[1] for line in ran] == ["get_verse_data.py", "infer.py", "evaluate.py"] * 2
    assert generated.main([*arguments[:2], "--ranges", "--of-a-kind", "0"]) == 0
    assert len(ran) == 6 and not capsys.readouterr().out.strip()
    assert "--ranges old --seed 7101" in ran[3] and ran[4].endswith("--batch-size 1")
