"""The command line: short options, the version, groups in the help of the inference, and the walk."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from utils.command_line import citation_of, settings_from_command_line
from utils.settings import MOST_VERTEBRAE, DataSettings, EvaluationSettings, InferenceSettings, WalkOptions
from utils.walk.records import FRAGMENT, WalkSettings

PROJECT = Path(__file__).resolve().parents[1]


def printed_by(stage, arguments, capsys):
    """What ends with status 0 prints."""
    with pytest.raises(SystemExit) as ended:
        settings_from_command_line(stage, arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("stage", [DataSettings, InferenceSettings, EvaluationSettings])
def test_every_script_says_its_version(stage, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/infer.py"])
    found = re.search(r'^version = "(.+)"$', (PROJECT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert citation_of("version") == found
    assert printed_by(stage, ["--version"], capsys) == f"infer.py {found}\n"
    assert "--version" in printed_by(stage, ["--help"], capsys)


def test_figures_are_drawn_whatever_a_notebook_says():
    lines = (
        "from utils.command_line import settings_from_command_line",
        "from utils.settings import InferenceSettings",
        "settings_from_command_line(InferenceSettings, ['a'])",
        "import matplotlib.figure, os",
        "print(os.environ.get('MPLBACKEND'))",
    )
    environment = {**os.environ, "MPLBACKEND": "module://not_installed.backend_inline"}
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("Wirbelsäule", rb"Wirbels\xe4ule"),
        ("a\x1b[2Jb\nerror", rb"a\x1b[2Jb\nerror"),
    ],
)
@pytest.mark.parametrize("script", ["infer.py", "evaluate.py", "get_verse_data.py"])
def test_names_reach_an_ascii_terminal_in_ascii(tmp_path, script, name, printed):
    """A folder that is not there is named in one line, with what the terminal lacks or would obey escaped."""
    missing = tmp_path / name
    options = {
        "infer.py": [missing, "--output", tmp_path / "out"],
        "evaluate.py": ["--data-dir", missing, "--predictions", tmp_path],
        "get_verse_data.py": ["--source", missing, "--data-dir", tmp_path / "out"],
    }
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, script, *options[script]]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, timeout=300)
    output = done.stdout + done.stderr
    assert done.returncode in (1, 2) and b"Traceback" not in output and b"\x1b" not in output
    assert any(printed in line for line in output.splitlines())


@pytest.mark.parametrize("option", ["-o", "--output"])
def test_the_output_has_a_short_option(option):
    assert settings_from_command_line(InferenceSettings, ["a", option, "b"]).output == Path("b")


def test_the_help_of_the_inference_is_grouped_and_two_screens_long():
    result = subprocess.run(
        [sys.executable, "infer.py", "--help"],
        cwd=PROJECT,
        env={"COLUMNS": "100", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
    )
    lines = result.stdout.splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 100
    titles = re.findall(r"^╭─ (\w+) options ─", result.stdout, re.MULTILINE)
    assert titles == ["scan", "network", "level", "walk", "run"]


def test_groups_leave_the_settings_flat_and_the_defaults_as_they_are():
    assert settings_from_command_line(InferenceSettings, []) == InferenceSettings()
    words = ["a", "b", "--fix", "1=T1", "2=T2", "--max-steps", "7", "--workers", "0", "--model", "c"]
    expected = InferenceSettings(
        inputs=(Path("a"), Path("b")),
        fix=("1=T1", "2=T2"),
        max_steps=7,
        workers=0,
        segmentation=Path("c"),
    )
    assert settings_from_command_line(InferenceSettings, words) == expected


def test_options_of_the_walk_are_settings_of_the_walk_with_the_same_defaults():
    own = dataclasses.asdict(WalkOptions())
    assert own == {name: getattr(WalkSettings(), name) for name in own}
    assert MOST_VERTEBRAE == FRAGMENT - 1
    WalkSettings(max_vertebrae=MOST_VERTEBRAE)
