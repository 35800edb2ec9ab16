"""Steps of experiments: printed, run in processes of their own, ended by the first that fails."""

import json
import subprocess
import sys

import pytest

from experiments import steps
from experiments.phantoms import TRIALS, trial_steps
from experiments.steps import PROJECT, run_steps, script


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """A project of one script, which notes a word down and ends with the status that it is given."""
    text = "import sys; open(sys.argv[1], 'a').write(sys.argv[2]); sys.exit(int(sys.argv[3]))"
    (tmp_path / "note.py").write_text(text)
    monkeypatch.setattr(steps, "PROJECT", tmp_path)
    return tmp_path


def test_steps_run_in_their_order_and_are_printed_before(scripts, capfd):
    notes = scripts / "notes"
    run_steps([script("note.py", notes, text, 0) for text in ("a b", "c")], dry_run=False)
    assert notes.read_text() == "a bc"
    lines = capfd.readouterr().out.splitlines()
    assert lines == [f"+ python note.py {notes} 'a b' 0", f"+ python note.py {notes} c 0"]


def test_a_dry_run_runs_nothing(scripts, capfd):
    run_steps([script("note.py", scripts / "notes", "a", 0)], dry_run=True)
    assert not (scripts / "notes").exists() and "note.py" in capfd.readouterr().out


def test_a_step_that_fails_ends_the_experiment_with_its_status(scripts):
    notes = scripts / "notes"
    with pytest.raises(SystemExit) as end:
        run_steps([script("note.py", notes, text, 3) for text in "ab"], dry_run=False)
    assert end.value.code == 3 and notes.read_text() == "a"


def test_a_step_that_is_killed_ends_it_as_shells_have_it(scripts):
    (scripts / "die.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(SystemExit) as end:
        run_steps([script("die.py")], dry_run=False)
    assert end.value.code == 128 + 9


def test_a_module_is_run_from_the_project(scripts):
    (scripts / "aside.py").write_text("import sys; open(sys.argv[1], 'w').write('ran')")
    run_steps([script("-m", "aside", scripts / "notes")], dry_run=False)
    assert (scripts / "notes").read_text() == "ran"


def test_progress_says_what_is_done_and_what_comes(scripts, tmp_path):
    first, second, bad = (
        script("note.py", scripts / "notes", text, status) for text, status in ("a0", "b0", "c3")
    )
    progress = tmp_path / "progress.json"
    with pytest.raises(SystemExit):
        run_steps([first, bad, second], dry_run=False, progress=progress)
    found = json.loads(progress.read_text())
    assert (found["done"], found["of"], found["next"]) == (1, 3, str(bad))
    for _ in range(2):
        run_steps([first, second], dry_run=False, progress=progress)
    found = json.loads(progress.read_text())
    assert (found["done"], found["of"], found["next"]) == (2, 2, None)
    assert list(found["minutes"]) == [str(first), str(second)]


def test_the_demonstration_runs_the_scripts_of_the_pipeline(tmp_path):
    place, work = "demo/data", "--work-dir demo/work"
    data, small = f"--data-dir {place}", "--preset small"
    lines = [str(step).removeprefix("python ") for step in trial_steps(TRIALS["demo"], steps.Path("demo"))]
    assert lines == [
        f"get_verse_data.py --source phantom {data} --phantoms 12 3 5 --seed 0",
        f"pre_processing_heatmap.py {data} {work} {small} --drawn 80 4",
        f"train_heatmap.py {work} {small}",
        f"train_labelling.py {work} {small}",
        f"pre_processing_segmentation.py {data} {work} {small}",
        f"train_segmentation.py {work} {small}",
        f"infer.py {place}/VerSe19/dataset-verse19test {place}/VerSe20/dataset-03test {work} "
        "--output demo/predictions",
        f"evaluate.py {data} --split test --predictions demo/predictions --output demo/evaluation",
    ]
    longer = [str(step) for step in trial_steps(TRIALS["train-small"], steps.Path("s"))]
    training = "python train_segmentation.py --work-dir s/work --preset small"
    assert longer[5] == f"{training} --epochs 40 --examples-per-epoch 160"


def test_an_experiment_prints_its_steps_in_a_dry_run(tmp_path):
    command = [
        sys.executable,
        "experiments/phantoms.py",
        "demo",
        "--dry-run",
        "--folder",
        str(tmp_path / "d"),
    ]
    ran = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert sum(line.startswith("+ python ") for line in ran.stdout.splitlines()) == 8
    assert not (tmp_path / "d").exists()
