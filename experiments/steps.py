"""The steps of an experiment: each is printed before it runs, in a process of its own.

A process gives its memory and its devices back when it ends. Steps leave what is done already as it is, so
the same experiment goes on where a killed run stopped.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.files import write_text_whole

PROJECT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Step:
    """A script of the project, or a module after "-m", with its command line."""

    arguments: tuple[str, ...]

    def __str__(self) -> str:
        """The command, as it may be typed in the project's folder."""
        return f"python {shlex.join(self.arguments)}"

    def run(self) -> None:
        """Run it; a script that fails ends the experiment with its exit status."""
        first, *others = self.arguments
        program = [first] if first == "-m" else [str(PROJECT / first)]
        search = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": search}
        status = subprocess.run([sys.executable, *program, *others], env=environment, check=False).returncode
        if status:
            raise SystemExit(status if status > 0 else 128 - status)


def script(name: str, *arguments: object) -> Step:
    """Give a step that runs a script.

    Parameters
    ----------
    name : str
        File name of the script, or "-m".
    *arguments
        Its command line; each becomes text.

    Returns
    -------
    Step
    """
    return Step((name, *map(str, arguments)))


def exit_status_of(run: Callable[[], None]) -> int:
    """Run a script of an experiment: what is wrong with its files or its command line is one line.

    Parameters
    ----------
    run : callable
        All that it does.

    Returns
    -------
    int
        0, or 1 after a `ValueError` or an `OSError`.
    """
    try:
        run()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run_steps(steps: Sequence[Step], *, dry_run: bool, progress: Path | None = None) -> None:
    """Print each step, and run it unless this is a dry run.

    Parameters
    ----------
    steps : sequence of Step
        In their order.
    dry_run : bool
        Print them only.
    progress : Path, optional
        File that says after every step what is done, what comes next, and the minutes that each took.

    Raises
    ------
    SystemExit
        With the exit status of a step that failed.
    """
    for number, step in enumerate(steps):
        print(f"+ {step}", flush=True)
        if dry_run:
            continue
        began = time.monotonic()
        step.run()
        if progress is not None:
            _note_progress(progress, steps, number, (time.monotonic() - began) / 60)


def _note_progress(path: Path, steps: Sequence[Step], number: int, minutes: float) -> None:
    """Note down that a step is done; the minutes of an experiment that went on are those of all its runs."""
    before = json.loads(path.read_text())["minutes"] if path.is_file() else {}
    done = str(steps[number])
    spent = {**before, done: round(before.get(done, 0.0) + minutes, 2)}
    following = str(steps[number + 1]) if number + 1 < len(steps) else None
    facts = {"done": number + 1, "of": len(steps), "next": following, "minutes": spent}
    write_text_whole(path, json.dumps(facts, indent=2) + "\n")
    print(
        f"{number + 1} of {len(steps)} steps done, {sum(spent.values()) / 60:.1f} hours so far.", flush=True
    )
