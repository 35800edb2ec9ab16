"""How long the inference takes from the command to the files, and parts of that; medians of fresh processes.

Command python benchmarks/trial_start.py SCAN [--repeats 3] [--before CHECKOUT]
Prints  seconds of the import, of `infer.py` on the scan, also with the garbage collector at work while
        TensorFlow is imported, and again, of `--relabel`, and of `segment` twice in one process, with the
        largest memory of each process; with --before also of `infer.py` of another checkout of this
        project, such as one of an earlier version, in turn with this one, and their ratio
Time    about three minutes for a chest CT
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
TWICE = """
import sys, time
from utils.prediction import segment
for _ in range(2):
    begun = time.perf_counter()
    segment(sys.argv[1], device="cpu")
    print(time.perf_counter() - begun)
"""


#: `infer.py` without what `utils.quiet_start` does about the collector, as it was before.
COLLECTED = """
import contextlib, runpy, sys
from utils import quiet_start
quiet_start.without_collections = contextlib.nullcontext
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*command: str, project: Path = PROJECT) -> tuple[float, float, str]:
    """Run Python in a project's folder; gives seconds, the largest memory in GB, and what it printed."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=project, stdout=subprocess.PIPE, text=True)
    with process:
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: expected exit status 0, found {process.returncode}.")
    return time.perf_counter() - begun, usage.ru_maxrss / 2**20, printed


def print_row(name: str, seconds: Sequence[float], gigabytes: Sequence[float] = ()) -> None:
    """Print a row of the table: the median, the range, and the memory."""
    memory = f"{max(gigabytes):.1f} GB" if gigabytes else ""
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    print(f"{name:<28} {statistics.median(seconds):7.2f} s  ({spread})  {memory}", flush=True)


def print_runs(name: str, repeats: int, command: Callable[[int], Sequence[str]]) -> None:
    """Run a command in fresh processes, and print its row."""
    print_done(name, [run(*command(number)) for number in range(repeats)])


def print_done(name: str, runs: Sequence[tuple[float, float, str]]) -> None:
    """Print the row of what `run` gave."""
    print_row(name, [each[0] for each in runs], [each[1] for each in runs])


def print_ratio(name: str, ours: Sequence[tuple], baseline: Sequence[tuple]) -> None:
    """Print how many times the seconds of ours a baseline takes, by the medians of what `run` gave."""
    seconds = [statistics.median(each[0] for each in runs) for runs in (baseline, ours)]
    print(f"{name}: {seconds[0] / seconds[1]:.2f}")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scan", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--before", type=Path, help="another checkout of this project, to compare with")
    settings = parser.parse_args()
    scan = str(settings.scan.absolute())
    with tempfile.TemporaryDirectory() as folder:
        infer = ["infer.py", scan, "--device", "cpu", "--work-dir", folder]
        repeats = settings.repeats
        print_runs("import utils.prediction", repeats, lambda _: ("-c", "import utils.prediction"))
        print_runs("... import segment", repeats, lambda _: ("-c", "from utils.prediction import segment"))
        # In turn, so that what else the machine does meets both.
        resting, collecting, before = [], [], []
        for number in range(repeats):
            resting.append(run(*infer, "--output", f"{folder}/{number}"))
            collecting.append(run("-c", COLLECTED, *infer, "--output", f"{folder}/collecting-{number}"))
            if settings.before:
                output = f"{folder}/before-{number}"
                before.append(run(*infer, "--output", output, project=settings.before))
        print_done("infer.py", resting)
        print_done("... collecting", collecting)
        if before:
            print_done("... of the other checkout", before)
        print_runs("infer.py, predicted already", repeats, lambda _: (*infer, "--output", f"{folder}/0"))
        print_runs("infer.py --relabel", repeats, lambda _: (*infer, "--output", f"{folder}/0", "--relabel"))
        calls = [run("-c", TWICE, scan) for _ in range(repeats)]
        cold, warm = zip(*(map(float, printed.split()) for _, _, printed in calls))
        print_row("segment, first call", cold, [each[1] for each in calls])
        print_row("segment, second call", warm)
    print_ratio("ratio", resting, collecting)
    if before:
        print_ratio("ratio of the other checkout", resting, before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
