"""Whether XLA compiles the network of a training: decided once, on its first batch, without ending the run.

XLA's 3-D convolutions are faster than those of cuDNN on some GPUs, many times slower on others, and on some
no algorithm is found for them. Which it is cannot be known before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import tensorflow as tf

#: Runs of each form that are timed, after one that compiles.
TIMED_RUNS = 3

#: Whether to compile; "auto" takes what is faster.
Choice = bool | Literal["auto"]


@dataclass(eq=False)
class Compilation:
    """The choice between a function compiled by XLA and the same function without it.

    Attributes
    ----------
    wanted : bool or "auto"
        False never compiles, True does where that works, "auto" takes what is faster.
    variables : sequence of tf.Variable
        What the functions change (moving statistics, seeds); a trial leaves them as they were.
    say : callable of str
        Receives the line that says what was chosen.
    """

    wanted: Choice
    variables: Sequence[Any]
    say: Callable[[str], None]

    def choose(self, function: Callable, arguments: Sequence[Any]) -> Callable:
        """Give a function in the form that it is to be run in.

        Parameters
        ----------
        function : callable
            Of tensors.
        arguments : sequence
            Of a first call.

        Returns
        -------
        callable

        Raises
        ------
        tf.errors.OpError
            If the function fails in every form that was tried.
        """
        plain = tf.function(function)
        if self.wanted is False:
            return plain
        compiled = tf.function(function, jit_compile=True)
        try:
            seconds = self._seconds_of(compiled, arguments)
        except tf.errors.OpError as error:
            first_line = (str(error.message).splitlines() or [""])[0]
            self.say(f"XLA could not run the network ({type(error).__name__}: {first_line}); left out.")
            self.wanted = False
            return plain
        if self.wanted == "auto":
            self._take_the_faster(seconds, self._seconds_of(plain, arguments))
        return compiled if self.wanted else plain

    def _take_the_faster(self, compiled_s: float, plain_s: float) -> None:
        self.wanted = compiled_s < plain_s
        taken, left = ("with", "without") if self.wanted else ("without", "with")
        ratio = max(compiled_s, plain_s) / min(compiled_s, plain_s)
        self.say(f"The network runs {taken} XLA: {ratio:.2f} times as fast as {left}.")

    def _seconds_of(self, function: Callable, arguments: Sequence[Any]) -> float:
        """Time a function, its compilation left out; with no choice to make it is run once."""
        before = [tf.identity(variable) for variable in self.variables]
        try:
            _finish(function(*arguments))
            began = time.perf_counter()
            for _ in range(TIMED_RUNS if self.wanted == "auto" else 0):
                _finish(function(*arguments))
            return (time.perf_counter() - began) / TIMED_RUNS
        finally:
            for variable, value in zip(self.variables, before, strict=True):
                variable.assign(value)


def _finish(results: Any) -> None:
    """Wait for the device: a number is read back."""
    for tensor in tf.nest.flatten(results)[:1]:
        tensor.numpy()
