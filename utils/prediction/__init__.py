"""A scan from file to files; `segment` is the Python call (`utils.prediction.interface`)."""

from __future__ import annotations

from typing import Any

__all__ = ["Segmentation", "segment"]


def __getattr__(name: str) -> Any:
    # At the first use: what segments loads slowly, and most modules of this folder do not need it.
    if name in __all__:
        from utils.prediction import interface

        return getattr(interface, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
