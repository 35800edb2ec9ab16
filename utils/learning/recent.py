"""What is costly to make and often asked for: kept as long as there is room for it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class RecentlyUsed(Generic[Value]):
    """Values by key, up to a size of all together; the one not used for longest goes first.

    Parameters
    ----------
    most : int
        Size of all values that are kept. One that is larger is given, but not kept.
    size_of : callable
        Size of a value, such as its bytes; by default values are counted.
    """

    def __init__(self, most: int, size_of: Callable[[Value], int] = lambda value: 1):
        self.most, self.size_of = most, size_of
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._held = 0
        # Several threads read examples.
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Give the value of a key, made if it is not there; `make` must give the same at every call."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._held += self.size_of(value)
            while self._held > self.most:
                _, oldest = self._values.popitem(last=False)
                self._held -= self.size_of(oldest)
        return value
