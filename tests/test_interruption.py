"""A script that is interrupted, killed, or cannot write: one line, its status, and nothing left of it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

PROJECT = Path(__file__).resolve().parents[1]
LONGEST_S = 120.0
#: A script that writes a file in each of its processes, and never ends by itself.
SCRIPT = """
import sys, time
from pathlib import Path
from utils.command_line import run_script
from utils.execution import outcomes
from utils.files import written_whole
from utils.settings import EvaluationSettings

def work(name):
    with written_whole(Path(sys.argv[2]) / name) as temporary:
        temporary.write_text("half")
        time.sleep(600)

def main(settings):
    list(outcomes(work, ["a", "b"][: settings.workers], workers=settings.workers))

if __name__ == "__main__":
    sys.exit(run_script(main, EvaluationSettings))
"""


def heed_ctrl_c():
    """Undo what a shell does to a job in the background, such as these tests may be: ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*command, **streams):
    """Start a process in a group of its own, as a shell does."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "CUDA_VISIBLE_DEVICES": ""}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    how = {"cwd": PROJECT, "env": environment, "start_new_session": True, "text": True}
    return subprocess.Popen([sys.executable, *map(str, command)], preexec_fn=heed_ctrl_c, **how, **streams)


def wait_until(holds):
    end = time.monotonic() + LONGEST_S
    while not holds():
        assert time.monotonic() < end, f"expected within {LONGEST_S:g} s, found nothing of it"
        time.sleep(0.02)


def lives(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("number", "to_all", "status", "printed"),
    [
        (signal.SIGINT, True, 130, "Interrupted: the same command goes on from here.\n"),
        (signal.SIGINT, False, 130, "Interrupted: the same command goes on from here.\n"),
        (signal.SIGTERM, False, 143, "Terminated: the same command goes on from here.\n"),
        (signal.SIGKILL, False, -9, ""),
    ],
)
def test_a_signal_ends_a_script_and_its_processes(tmp_path, number, to_all, status, printed, workers):
    """A terminal sends Ctrl-C to all processes of a script, a system's manager often to the first one."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "out").mkdir()
    process = start(tmp_path / "script.py", "--output", tmp_path / "out", "--workers", workers)
    wait_until(lambda: process.poll() is not None or len(list((tmp_path / "out").iterdir())) == workers)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == (0 if workers == 1 else 3)  # with Python's own, which tidies up behind a pool
    (os.killpg if to_all else os.kill)(process.pid, number)
    said = process.communicate(timeout=LONGEST_S)
    wait_until(lambda: not any(map(lives, children)))
    assert (process.returncode, *said) == (status, "", printed)
    left = list((tmp_path / "out").iterdir())
    assert len(left) == (1 if number == signal.SIGKILL and workers == 1 else 0)
    assert all(path.name.startswith(".") for path in left)
    if left:  # gone when the next run is at work
        process = start(tmp_path / "script.py", "--output", tmp_path / "out", "--workers", workers)
        folder = tmp_path / "out"
        wait_until(lambda: process.poll() is not None or any({*folder.iterdir()} - {*left}))
        process.kill()
        process.communicate(timeout=LONGEST_S)
        assert not left[0].exists()


def test_ctrl_c_is_heeded_while_tensorflow_is_imported(tmp_path):
    process = start("train_heatmap.py", "--work-dir", tmp_path, "--preset", "small")
    libraries = Path(f"/proc/{process.pid}/maps")
    wait_until(lambda: process.poll() is not None or "libtensorflow" in libraries.read_text())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LONGEST_S)
    assert (process.returncode, out) == (130, "")
    assert err == "Interrupted: the same command goes on from here.\n"


def test_a_signal_that_a_shell_had_ignored_stays_so():
    code = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from utils.command_line import ended_in_a_line
sys.exit(ended_in_a_line(lambda: os.kill(os.getpid(), signal.SIGINT) or print("goes on") or 5))
"""
    process = start("-c", code)
    assert process.communicate(timeout=LONGEST_S) == ("goes on\n", "")
    assert process.returncode == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_work_changes_nothing(number):
    """While Python tidies up, handlers of signals are gone; modules are cleared last of all."""
    code = f"""
import os, sys
from utils.command_line import ended_in_a_line
class Last:
    def __init__(self):
        self.kill, self.me = os.kill, os.getpid()
    def __del__(self):
        self.kill(self.me, {number})
sys.last_of_all = Last()
sys.exit(ended_in_a_line(lambda: print("done") or 1))
"""
    process = start("-c", code)
    assert process.communicate(timeout=LONGEST_S) == ("done\n", "")
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("drawn", "between"),
    [
        ("", ""),
        ("a line\n", ""),
        ("\rbar: 50%", "\n"),
        ("\rbar: 50%\r        ", "\n"),
        ("\rbar: 50%\r        \r", ""),
    ],
    ids=["nothing", "a line", "a bar", "a bar half wiped away", "a bar that is gone"],
)
def test_the_line_that_ends_a_script_stands_alone(drawn, between):
    code = f"""
import sys, time
from utils.command_line import ended_in_a_line
def run():
    print({drawn!r}, end="", file=sys.stderr, flush=True)
    print("drawn", flush=True)
    time.sleep(600)
sys.exit(ended_in_a_line(run))
"""
    process = start("-c", code)
    assert process.stdout.readline() == "drawn\n"
    process.terminate()
    said = process.communicate(timeout=LONGEST_S)[1]
    shown = drawn.replace("\r", "\n")  # as Python reads text
    assert said == f"{shown}{between}Terminated: the same command goes on from here.\n"


ENDLESS = """
import sys
from utils.command_line import ended_in_a_line
from utils.files import written_whole
def run():
    with written_whole({folder!r} + "/a") as temporary:
        while True:
            try:
                print("a line")
            except Exception:
                print("never told", file=sys.stderr)
sys.exit(ended_in_a_line(run))
"""


def test_an_output_that_nothing_reads_any_more_ends_a_script(tmp_path):
    process = start("-c", ENDLESS.format(folder=str(tmp_path)))
    assert process.stdout.readline() == "a line\n"
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(LONGEST_S) == 141 and list(tmp_path.iterdir()) == []
    assert (
        said == "Ended, as nothing reads the standard output any more: the same command goes on from here.\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("code", ["print('a')", "[print('a') for _ in range(10 ** 5)]"])
def test_an_output_on_a_full_disk_ends_a_script(code):
    start_of_it = "import sys\nfrom utils.command_line import ended_in_a_line\n"
    lines = f"{start_of_it}sys.exit(ended_in_a_line(lambda: {code}))"
    with Path("/dev/full").open("w") as full:
        process = start("-c", lines, stdout=full)
        _, said = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 1
    assert said == "standard output: expected to write to it, found: No space left on device.\n"


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("PermissionError(13, 'Permission denied', 'work')", r"error: .*Permission denied: 'work'\n"),
        ("MemoryError()", r"error: expected enough memory, found it used up\.\n"),
    ],
)
def test_what_the_system_refuses_is_one_line(raised, said):
    code = f"""
import sys
from utils.command_line import ended_in_a_line
def run():
    raise {raised}
sys.exit(ended_in_a_line(run))
"""
    process = start("-c", code)
    out, err = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 1 and out == "" and re.fullmatch(said, err)


def test_every_script_ends_in_one_line():
    """All go through the function that these tests are of."""
    for path in PROJECT.glob("*.py"):
        assert re.search(r"\n    sys\.exit\(run_script\(main, \w+\)\)\n$", path.read_text()), path.name
