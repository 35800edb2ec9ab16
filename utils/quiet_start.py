"""TensorFlow's start-up lines go into a file, not onto the user's terminal.

Its native code writes to the descriptor of stderr, some of it before any setting is heeded. So the descriptor
leads into `LOG` while TensorFlow is imported and looks for GPUs, wherever in the project that happens first.
Errors that have to do with the start name the file.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

#: What TensorFlow wrote at its last start, of this user.
LOG = Path(tempfile.gettempdir()) / f"vertebrae-tensorflow-{os.getuid()}.log"
_STDERR = 2


def install() -> None:
    """Let the next import of TensorFlow, if it is not loaded yet, write its native lines into `LOG`."""
    # Later lines of native code are only shown from errors on.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if "tensorflow" not in sys.modules and not any(isinstance(each, _Finder) for each in sys.meta_path):
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


class _Finder:
    """Finds TensorFlow as the others do, once, and lets it be loaded quietly."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_quietly(module: ModuleType) -> None:
                try:
                    with native_lines_in_log():
                        load(module)
                        module.config.list_physical_devices()  # its look for GPUs writes lines too
                except ImportError as error:
                    raise ImportError(f"{error} (what TensorFlow said before: {LOG})") from error

            spec.loader.exec_module = load_quietly
        return spec
