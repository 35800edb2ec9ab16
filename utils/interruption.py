"""How a program ends before its work is done: with one line, and no half of a file and no process left.

A thread waits for the signals that end a program. So they are heeded at once, within TensorFlow and during
its import too, and no exception is raised in the midst of somebody's code, which might print it, or take it
for another one.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from utils.files import remove_unfinished

#: What ends a program, with the word for it; its exit status is 128 and the signal's number, as in a shell.
ENDING = {"SIGINT": "Interrupted", "SIGTERM": "Terminated"}
#: Seconds until processes that do not end by themselves are killed.
GRACE_S = 2.0
_GOES_ON = "the same command goes on from here."
#: A process of Python's own, which removes what a pool of processes leaves in the system, and then ends.
_TRACKER = "multiprocessing.resource_tracker"
_NO_WORD = "ignore:resource_tracker:UserWarning"
_SIGPIPE = 13
_ending = threading.Lock()
#: A copy of the standard error, which leads elsewhere while TensorFlow is imported (`utils.quiet_start`).
_stderr: dict[str, int] = {}
#: What each stream ended with when it was last written to.
_last_bytes: dict[str, bytes] = {}
#: Name of the stream that bars are drawn on.
STANDARD_ERROR = "standard error"


def heed_signals() -> None:
    """Let Ctrl-C and SIGTERM end this program with one line and the status 130 or 143, from now on.

    To be called by its main thread. A signal that is ignored stays so, as Ctrl-C for a program that a shell
    runs in the background.
    """
    if os.name != "posix":  # there the pipe would have to be a socket
        return
    with suppress(OSError):  # it may be closed
        _stderr["own"] = os.dup(2)
    heeded = [number for number in _numbers() if signal.getsignal(number) != signal.SIG_IGN]
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in heeded:
        signal.signal(number, lambda *_: None)
    _in_thread(_end_on, reading, heeded)


@contextmanager
def starting_processes() -> Iterator[None]:
    """Have both signals blocked in the processes of a pool that the block starts: their parent ends them.

    What of a pool is left in the system when its program ends, Python removes without a word about it.
    """
    from multiprocessing import resource_tracker

    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    if _NO_WORD not in sys.warnoptions:
        sys.warnoptions.append(_NO_WORD)
    resource_tracker.ensure_running()  # it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _numbers())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """Let SIGTERM, and the end of the process that started it, end this process of a pool, in silence.

    To be called in a process begun within `starting_processes`.
    """
    if hasattr(signal, "pthread_sigmask"):
        _in_thread(_leave_on_sigterm)
    _in_thread(_leave_after_parent)


def end_now(line: str, status: int) -> NoReturn:
    """End this program and the processes it has started, with a line on the standard error.

    Unfinished files are removed; nothing of the program runs on to its end, not even what `finally` says.
    """
    if not _ending.acquire(blocking=False):  # one thread does it; the others wait for it
        threading.Event().wait()
    with suppress(OSError):
        # First, so that no bar is drawn behind the line; and what other threads say about processes that end
        # and files that are gone is nobody's concern.
        said_to = _stderr["own"] if "own" in _stderr else os.dup(2)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        os.write(said_to, f"{_end_of_line()}{line}\n".encode(errors="backslashreplace"))
    remove_unfinished()
    _end_children()
    os._exit(status)


@contextmanager
def nothing_else_ends() -> Iterator[None]:
    """Let a block be all that a program does: no signal spoils its status, nor it that of a signal before."""
    try:
        yield
    finally:
        if _ending.locked():
            threading.Event().wait()
        # Python would let them end it in its own way while it tidies up, which takes seconds with TensorFlow.
        for number in _numbers() if os.name == "posix" else ():
            signal.signal(number, signal.SIG_IGN)


class Output(io.FileIO):
    """A stream of a program that ends it, in a line, where it cannot be written to."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._name = name

    def write(self, content: bytes) -> int | None:
        """Write bytes; see `io.FileIO.write`."""
        # While it is being written, both what stood there and what comes may be the end of the line.
        _last_bytes[self._name] = min(_last_bytes.get(self._name, b"\n"), bytes(content[-1:]), key=_ends_line)
        try:
            written = super().write(content)
            _last_bytes[self._name] = bytes(content[-1:])
            return written
        except BrokenPipeError:
            end_now(f"Ended, as nothing reads the {self._name} any more: {_GOES_ON}", 128 + _SIGPIPE)
        except OSError as error:
            end_now(f"{self._name}: expected to write to it, found: {error.strerror}.", 1)


def _numbers() -> set[signal.Signals]:
    return {signal.Signals[name] for name in ENDING}


def _in_thread(target: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, name=target.__name__, daemon=True).start()


def _end_on(reading: int, heeded: Sequence[int]) -> None:
    while (number := os.read(reading, 1)[0]) not in heeded:
        pass
    end_now(f"{ENDING[signal.Signals(number).name]}: {_GOES_ON}", 128 + number)


def _leave_on_sigterm() -> None:
    signal.sigwait({signal.SIGTERM})
    _leave()


def _leave_after_parent() -> None:
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is not None:
        parent.join()
        _leave()


def _leave() -> NoReturn:
    remove_unfinished()
    os._exit(128 + signal.SIGTERM)


def _end_of_line() -> str:
    """Give what ends the line that stands on the standard error, such as a bar, or a part of one."""
    return "" if _ends_line(_last_bytes.get(STANDARD_ERROR, b"\n")) else "\n"


def _ends_line(last: bytes) -> bool:
    """Whether what comes after a byte begins a line: a bar that is gone ends with a carriage return."""
    return last in (b"\n", b"\r", b"")


def _end_children() -> None:
    """End all processes started from here, and those that these have started."""
    import psutil  # late, as it takes some time that most runs need not spend

    ending = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if not any(_TRACKER in part for part in child.cmdline()):
                child.terminate()
                ending.append(child)
    for child in psutil.wait_procs(ending, GRACE_S)[1]:
        with suppress(psutil.Error):
            child.kill()
