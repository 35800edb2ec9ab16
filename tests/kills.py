"""Every script of the pipeline, killed and interrupted at random moments: `make test-kills`.

Each script runs on a few tiny phantoms, again and again in the same folder, and gets a signal at a moment
drawn between its first line and the time that a whole run takes. After each signal:

- every file with its final name can be read;
- no process is left of it, after at most `PATIENCE_S`;
- SIGINT ends it with status 130, SIGTERM with 143, and one line, the last; nobody sees a traceback.

A run that ended before its signal must have status 0; the next one then begins from nothing. In the end the
script must run whole, and leave no temporary file. It takes about an hour; less with

    python -m tests.kills --scripts infer.py evaluate.py --kills 3 --interrupts 1
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel
import numpy as np
import psutil
from matplotlib import image

from tests.test_scripts import SHORT, TINY_LABELLING, TINY_LOCALISER, TINY_NETWORK
from utils.files import is_left_over

PROJECT = Path(__file__).resolve().parents[1]
#: Seconds until a process of a script that has ended counts as left behind, and a run as one that hangs.
PATIENCE_S, LONGEST_S = 15.0, 900.0
SIGNALS = {
    signal.SIGINT: (130, "Interrupted: the same command goes on from here."),
    signal.SIGTERM: (143, "Terminated: the same command goes on from here."),
    signal.SIGKILL: (-signal.SIGKILL, None),
}


def commands(folder: Path) -> dict[str, tuple[str | Path, ...]]:
    """Give the command line of every script, in their order; all that they read and write is in a folder."""
    data, work, small = (
        ("--data-dir", folder / "data"),
        ("--work-dir", folder / "work"),
        ("--preset", "small"),
    )
    predictions = ("--predictions", folder / "predictions", "--output", folder / "evaluation")
    return {
        "get_verse_data.py": ("--source", "phantom", *data, "--phantoms", "2", "1", "2", "--workers", "2"),
        "pre_processing_heatmap.py": (*data, *work, *small, "--drawn", "1", "1", "--workers", "2"),
        "train_heatmap.py": (*work, *small, *SHORT, *TINY_LOCALISER),
        "train_labelling.py": (*work, *small, *SHORT, *TINY_LABELLING),
        "pre_processing_segmentation.py": (*data, *work, *small, "--workers", "2"),
        "train_segmentation.py": (*work, *small, *SHORT, *TINY_NETWORK),
        "train_distillation.py": (*work, *small, "--filters", "2", "2", "--methods", "soft"),
        "infer.py": (folder / "data", *work, "--output", folder / "predictions"),
        "evaluate.py": (*data, "--split", "test", *predictions, "--workers", "2"),
    }


# What is checked -----------------------------------------------------------------------------------


def _read_table(path: Path) -> None:
    with path.open(newline="") as stream:
        header, *rows = csv.reader(stream)
    assert all(len(row) == len(header) for row in rows), "a row is cut off"


def _read_volume(path: Path) -> None:
    np.asanyarray(nibabel.load(path).dataobj)


def _read_weights(path: Path) -> None:
    with h5py.File(path) as file:
        file.visititems(lambda _, item: item[()] if isinstance(item, h5py.Dataset) else None)


def _read_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None, "a checksum is wrong"


#: How a file is read, by the end of its name; of any other there is no telling.
READERS: dict[str, Callable[[Path], object]] = {
    ".json": lambda path: json.loads(path.read_text()),
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
    ".csv": _read_table,
    ".gz": _read_volume,
    ".nii": _read_volume,
    ".png": lambda path: image.imread(path),
    ".h5": _read_weights,
    ".keras": _read_archive,
}


def unreadable_files(folder: Path) -> list[str]:
    """Name the files that have their final names and cannot be read."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in READERS and not path.name.startswith("."):
            try:
                READERS[path.suffix](path)
            except Exception as error:  # whatever a reader finds wrong with half a file
                found.append(f"{path}: {type(error).__name__}: {error}")
    return found


def processes_of(session: int) -> list[psutil.Process]:
    """Give the processes that a script has started, or is itself, and that live."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.Error):
            continue
    return found


def left_behind(session: int) -> list[str]:
    """Name the processes that a script has left, and end them."""
    end = time.monotonic() + PATIENCE_S
    while (found := processes_of(session)) and time.monotonic() < end:
        time.sleep(0.1)
    for process in found:
        process.kill()
    return [f"{process} is left behind" for process in found]


# Runs ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """How a run of a script ended."""

    status: int
    said: str
    problems: list[str]


def run(command: Sequence[str | Path], number: signal.Signals | None = None, after_s: float = 0.0) -> Run:
    """Run a script, and send it a signal some seconds after it has begun to heed them."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile("w+") as said:
        how = {"cwd": PROJECT, "env": environment, "start_new_session": True}
        streams = {"stdout": subprocess.DEVNULL, "stderr": said}
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **how,
            **streams,
        )
        try:
            _wait_until_heeded(process)
            _wait_and_send(process, number, after_s)
            problems = [*_hangs(process), *left_behind(process.pid)]
        except KeyboardInterrupt:  # the script does not hear of it
            os.killpg(process.pid, signal.SIGKILL)
            raise
        said.seek(0)
        return Run(process.returncode, said.read(), problems)


def _wait_until_heeded(process: subprocess.Popen) -> None:
    """Wait for the script's first line: before it a program ends as Python lets it."""
    status, mask = Path(f"/proc/{process.pid}/status"), 1 << (signal.SIGTERM - 1)
    end = time.monotonic() + LONGEST_S
    while process.poll() is None and time.monotonic() < end:
        caught = [line for line in status.read_text().splitlines() if line.startswith("SigCgt")]
        if caught and int(caught[0].split()[1], 16) & mask:
            return
        time.sleep(0.005)


def _wait_and_send(process: subprocess.Popen, number: signal.Signals | None, after_s: float) -> None:
    try:
        process.wait(LONGEST_S if number is None else after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL if number is None else number)


def _hangs(process: subprocess.Popen) -> list[str]:
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return [f"{PATIENCE_S:g} s after the signal it had not ended"]
    return []


def problems_of(ended: Run, number: signal.Signals) -> list[str]:
    """Say what is wrong with how a run ended that got a signal, or was over before it."""
    status, line = SIGNALS[number]
    problems = list(ended.problems)
    if ended.status not in (0, status):
        problems.append(f"expected status {status}, or 0 for a run that was over, found {ended.status}")
    if "Traceback" in ended.said:
        problems.append("expected no traceback, found one")
    elif ended.status == status and line and ended.said.splitlines()[-1:] != [line]:
        problems.append(f"expected {line!r} as the last line, found {ended.said[-300:]!r}")
    return [*problems, *([f"it said: {ended.said[-2000:]}"] if problems else [])]


# A script ------------------------------------------------------------------------------------------


def try_script(script: str, before: Path, moments: random.Random, counts: dict[signal.Signals, int]) -> bool:
    """Kill a script as often as is asked for, from a folder that holds what it needs; leave the folder done.

    Tells whether all was well.
    """
    trial = before.with_name("trial")

    def begin_anew() -> None:
        shutil.rmtree(trial, ignore_errors=True)
        shutil.copytree(before, trial)

    command = (script, *commands(trial)[script])
    begin_anew()
    began = time.monotonic()
    whole = run(command)
    whole_s = time.monotonic() - began
    problems = list(whole.problems) if whole.status == 0 else [f"status {whole.status}: {whole.said[-2000:]}"]
    begin_anew()
    waiting = [number for number, times in counts.items() for _ in range(times)]
    moments.shuffle(waiting)
    ends: Counter[str] = Counter()
    for number in waiting if not problems else ():
        ended = run(command, number, moments.uniform(0.0, whole_s))
        found = [*problems_of(ended, number), *unreadable_files(trial)]
        problems += [f"{number.name}: {text}" for text in found]
        ends["over before" if ended.status == 0 else number.name] += 1
        if ended.status == 0 and not found:
            begin_anew()
    last = run(command)
    if last.status != 0:
        problems.append(
            f"expected the last run to end with status 0, found {last.status}: {last.said[-2000:]}"
        )
    problems += [*last.problems, *unreadable_files(trial)]
    problems += [f"{path} is left over" for path in trial.rglob(".*") if is_left_over(path.name)]
    counted = ", ".join(f"{name} {times}" for name, times in sorted(ends.items()))
    print(f"{script}: {whole_s:.1f} s a run; {counted}; {len(problems)} problems", flush=True)
    for text in problems:
        print(f"    {text}", flush=True)
    shutil.rmtree(before)
    trial.rename(before)
    return not problems


def main() -> int:
    """Try the scripts that are asked for, and give the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scripts", nargs="+", default=None, help="those to kill; the others run only")
    parser.add_argument("--kills", type=int, default=20, help="times that each gets SIGKILL")
    parser.add_argument("--interrupts", type=int, default=5, help="times that each gets SIGINT, and SIGTERM")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    chosen = parser.parse_args()
    asked = {
        signal.SIGKILL: chosen.kills,
        signal.SIGINT: chosen.interrupts,
        signal.SIGTERM: chosen.interrupts,
    }
    well = True
    with tempfile.TemporaryDirectory(prefix="kills-") as top:
        folder = Path(top, "before")
        folder.mkdir()
        scripts = list(commands(folder))
        wanted = chosen.scripts or scripts
        for script in scripts[: 1 + max(map(scripts.index, wanted))]:
            counts = asked if script in wanted else {}
            well &= try_script(script, folder, random.Random(f"{chosen.seed} {script}"), counts)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
