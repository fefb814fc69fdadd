"""What was made last, kept for whoever asks for it again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The values that were asked for last, by key; a value is made by one thread while the others wait.

    limit: how many are kept, or of what sum of sizes where ``size`` says what a value counts; the last one always is.
    """

    def __init__(self, limit: int, size: Callable[[V], int] = lambda value: 1) -> None:
        self._limit, self._size = limit, size
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._making: dict[K, threading.Lock] = {}
        self._guard = threading.Lock()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, made if it is not kept."""
        with self._guard:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._guard:
                known = [self._kept[key]] if key in self._kept else []
            value = known[0] if known else make()
            with self._guard:
                self._kept[key] = value
                self._kept.move_to_end(key)
                while len(self._kept) > 1 and sum(map(self._size, self._kept.values())) > self._limit:
                    self._kept.popitem(last=False)
            return value
