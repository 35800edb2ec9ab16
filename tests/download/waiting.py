"""Waiting with an end."""

import time

#: Generous: on a busy machine a program takes many seconds to begin.
LONGEST_S = 120.0


def wait_until(holds, *, step_s=0.01):
    """Wait until a function says that something holds; fail if it does not within `LONGEST_S`."""
    end = time.monotonic() + LONGEST_S
    while not holds():
        assert time.monotonic() < end, f"expected within {LONGEST_S:g} s, found nothing of it"
        time.sleep(step_s)


def end_of(started):
    """Wait for a process or thread of Python to end; fail if it does not within `LONGEST_S`."""
    started.join(LONGEST_S)
    assert not started.is_alive(), f"{started.name}: expected to end within {LONGEST_S:g} s"
