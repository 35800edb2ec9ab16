"""Python processes of their own that need not import TensorFlow: forked from one that has done so.

Importing it takes some four seconds of a core, in each process that a test starts. A process is forked here
from a server that has imported what is third-party and slow, has not used it yet, and holds nothing of this
project. Apart from this it is as one from a shell: arguments, environment, folder, output and status its own.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
#: What takes long to import.
SLOW = (
    *("tensorflow", "keras", "keras.src.saving", "pandas", "scipy.ndimage", "scipy.optimize", "scipy.stats"),
    *("nibabel", "matplotlib.figure", "matplotlib.backends.backend_agg"),
)
LONGEST_S = 600.0
#: Files of what a process says, in the order of their descriptors.
OUTPUTS = ("out", "err")


def context() -> multiprocessing.context.ForkServerContext:
    """Give the way to start processes forked from one which has imported TensorFlow and not used it yet."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(SLOW))
    return found


@dataclass(frozen=True)
class Started:
    """A process on its way, and the folder that holds what it says."""

    arguments: tuple[str, ...]
    process: BaseProcess
    folder: Path

    def end(self, timeout_s: float = LONGEST_S) -> subprocess.CompletedProcess[str]:
        """Wait for the process, which is killed after `timeout_s`; give its status and what it said."""
        self.process.join(timeout_s)
        self.process.kill()
        self.process.join()
        said = [(self.folder / name).read_text() for name in OUTPUTS]
        shutil.rmtree(self.folder)
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, *said)


def start(*arguments: str | Path, folder: Path = PROJECT, **environment: str) -> Started:
    """Start what `python *arguments` does: a script, `-m` and a module, or `-c` and code, with arguments.

    `environment` is added to that of this process; no GPU is seen.
    """
    said = Path(tempfile.mkdtemp(prefix="forked-"))
    for name in OUTPUTS:
        (said / name).touch()
    texts = tuple(map(str, arguments))
    quiet = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    variables = {**os.environ, **quiet, **environment}
    process = context().Process(target=_run, args=(texts, str(folder), variables, str(said)))
    process.start()
    return Started(texts, process, said)


def run(
    *arguments: str | Path, folder: Path = PROJECT, timeout_s: float = LONGEST_S, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run what `python *arguments` does to its end; see `start`."""
    return start(*arguments, folder=folder, **environment).end(timeout_s)


def _run(arguments: tuple[str, ...], folder: str, environment: Mapping[str, str], said: str) -> None:
    """Be the process; its status is that of the function which multiprocessing calls."""
    for number, name in enumerate(OUTPUTS, start=1):
        os.dup2(os.open(Path(said, name), os.O_WRONLY | os.O_APPEND), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    try:
        _run_as_main(*arguments)
    finally:
        atexit._run_exitfuncs()  # multiprocessing would leave without


def _run_as_main(first: str, *rest: str) -> None:
    installed = [path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix))]
    if first == "-m":
        sys.argv, sys.path = list(rest), [str(Path.cwd()), *installed]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path = ["-c", *rest[1:]], ["", *installed]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path = [first, *rest], [str(Path(first).resolve().parent), *installed]
        runpy.run_path(first, run_name="__main__")
