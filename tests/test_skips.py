"""Skips that are allowed, and those that make a run fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import skips

PROJECT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("is_there", [True, False])
def test_real_data_that_is_there_must_not_be_skipped(tmp_path, monkeypatch, is_there):
    monkeypatch.setattr(skips, "SHARED", tmp_path)
    (tmp_path / "other").mkdir()
    if is_there:
        (tmp_path / "real-ct").mkdir()
    reasons = [
        "the real organs (../shared/real-ct) are not here",
        f"{tmp_path}/shared/real-ct/a is not there",
    ]
    assert len(skips.wrong_skips([("a.py:1", reason) for reason in reasons])) == 2 * is_there


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("nginx", "nginx is not installed"),
        ("chromium", "Chromium or its driver is not installed"),
        ("google-chrome", "Chromium or its driver is not installed"),
    ],
)
@pytest.mark.parametrize("is_there", [True, False])
def test_programs_on_the_path_must_not_be_skipped(tmp_path, monkeypatch, program, reason, is_there):
    if is_there:
        (tmp_path / program).write_text("#!/bin/sh")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(skips, "_SYSTEM_FOLDERS", str(tmp_path))
    monkeypatch.setattr(skips.importlib.util, "find_spec", lambda name: None)
    assert len(skips.wrong_skips([("a.py:1", f"Skipped: {reason}")])) == is_there


def test_packages_that_are_installed_must_not_be_skipped_and_other_reasons_may_be():
    reasons = ["could not import 'numpy': broken", "could not import 'no_such_package': none", "a slow test"]
    (line,) = skips.wrong_skips([("a.py:1", reason) for reason in reasons])
    assert "numpy" in line


@pytest.mark.parametrize(("name", "status"), [("numpy", 1), ("no_such_package", 0)])
@pytest.mark.parametrize("processes", ["0", "1"])
def test_a_wrong_skip_makes_the_run_fail(tmp_path, name, status, processes):
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_sessionfinish\n")
    reason = f"could not import '{name}': no"
    (tmp_path / "test_a.py").write_text(
        f"import pytest\n\n\ndef test_a():\n    pytest.skip({reason!r})\n\n\ndef test_b():\n    pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-n", processes, "-p", "no:cacheprovider", "test_a.py"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    assert ("expected to run, found it skipped" in done.stdout) == bool(status)


TESTS = ["make lint", "make test"]


@pytest.mark.parametrize(
    ("programs", "user", "failing", "expected"),
    [
        (("chromium", "chromedriver", "nginx", "apt-get"), 0, "", TESTS),
        (("chromium", "apt-get"), 0, "", ["update", "install chromium-driver nginx", *TESTS]),
        (("apt-get",), 0, "update", ["update", *TESTS]),
        (("apt-get",), 0, "install", ["update", "install chromium chromium-driver nginx", *TESTS]),
        (("apt-get",), 1000, "", TESTS),
        ((), 0, "", TESTS),
    ],
)
def test_ci_installs_browser_and_server_where_it_can(tmp_path, programs, user, failing, expected):
    log = tmp_path / "log"
    for name in ("dirname", "bash"):
        (tmp_path / name).symlink_to(shutil.which(name))
    stubs = {"make": f'echo "make $1" >> {log}', "id": f"echo {user}"} | dict.fromkeys(programs, "")
    if "apt-get" in programs:
        stubs["apt-get"] = f'echo "$1" "${{@:5}}" >> {log}; [ "$1" != "{failing}" ]'
    for name, text in stubs.items():
        (tmp_path / name).write_text(f"#!{tmp_path / 'bash'}\n{text}\n")
        (tmp_path / name).chmod(0o755)
    script = (PROJECT / ".ci" / "run").read_text().replace(":/usr/sbin", "")  # there may be an nginx
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_text(script)
    command = [shutil.which("bash"), str(tmp_path / ".ci" / "run")]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=60)
    assert log.read_text().splitlines() == expected, done.stderr
    assert done.returncode == 0 and ("Could not install" in done.stderr) == bool(failing)
