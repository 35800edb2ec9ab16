"""Whether XLA compiles what makes the examples of a training: a switch of the run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

_SWITCH = {"compiles": True}


def compile_examples(compiles: bool) -> None:
    """Say, before anything is traced, whether `compiled` functions are compiled by XLA.

    Parameters
    ----------
    compiles : bool
        XLA makes resampling ten times faster on a CPU; it needs tools that some GPU machines lack.
    """
    _SWITCH["compiles"] = compiles


def compiled(function: Callable) -> Callable:
    """Make a function of tensors one of a graph, which XLA compiles unless the run says no.

    Parameters
    ----------
    function : callable
        Of tensors; Python values among its arguments are fixed when it is traced.

    Returns
    -------
    callable
    """
    forms = {compiles: tf.function(function, jit_compile=compiles or None) for compiles in (True, False)}

    @functools.wraps(function)
    def chosen(*arguments: Any, **keywords: Any) -> Any:
        return forms[_SWITCH["compiles"]](*arguments, **keywords)

    return chosen
