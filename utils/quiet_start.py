"""TensorFlow and Keras are imported quietly: start-up lines go into a file, and nothing is collected.

Its native code writes to the descriptor of stderr, some of it before any setting is heeded. So the descriptor
leads into `LOG` while TensorFlow is imported and looks for GPUs, wherever in the project that happens first.
Errors that have to do with the start name the file.

Their modules make six hundred thousand objects, all of which stay. Python's garbage collector would look
through them again and again while they are imported, and at the end: about a second of every run
(`benchmarks/trial_start.py`).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

#: What TensorFlow wrote at its last start, of this user.
LOG = Path(tempfile.gettempdir()) / f"vertebrae-tensorflow-{os.getuid()}.log"
_STDERR = 2
#: Keras imports TensorFlow, or is imported after it.
_TENSORFLOW, _KERAS = "tensorflow", "keras"


def install() -> None:
    """Let the next import of TensorFlow, if it is not loaded yet, write its native lines into `LOG`."""
    # Later lines of native code are only shown from errors on.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if _TENSORFLOW not in sys.modules and not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@contextlib.contextmanager
def native_lines_in_log() -> Iterator[None]:
    """Let what is written to the descriptor of stderr go into `LOG` meanwhile."""
    try:
        # Never through a link that somebody else has put there.
        log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        known = os.dup(_STDERR)
    except OSError:  # nowhere to write, or no stderr: nothing is kept, all goes on as it is
        yield
        return
    sys.stderr.flush()
    os.dup2(log, _STDERR)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(known, _STDERR)
        os.close(known)
        os.close(log)


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Let the garbage collector rest meanwhile, and never look through what is there in the end."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class _Finder:
    """Finds TensorFlow and Keras as the others do, each once, and lets them be loaded quietly."""

    def __init__(self) -> None:
        self.left = {_TENSORFLOW, _KERAS}

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in self.left:
            return None
        self.left.remove(name)
        if not self.left:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module
            if name == _TENSORFLOW:
                load = functools.partial(_load_tensorflow, load)
            spec.loader.exec_module = functools.partial(_load_at_rest, load)
        return spec


def _load_at_rest(load: Callable[[ModuleType], None], module: ModuleType) -> None:
    with without_collections():
        load(module)


def _load_tensorflow(load: Callable[[ModuleType], None], module: ModuleType) -> None:
    try:
        with native_lines_in_log():
            load(module)
            module.config.list_physical_devices()  # its look for GPUs writes lines too
    except ImportError as error:
        raise ImportError(f"{error} (what TensorFlow said before: {LOG})") from error
