"""What is kept between questions: the last of it, bounded in number and bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Remembered(Generic[T]):
    """The last things used, by what they were asked for; one that is large is not kept.

    Parameters
    ----------
    most_bytes : int
        Of all together; one is kept up to ``share`` of it.
    most : int, optional
        How many.
    share : float
    """

    def __init__(self, most_bytes: int, *, most: int | None = None, share: float = 0.5) -> None:
        self.most_bytes, self.most, self.share = most_bytes, most, share
        self.size_bytes = 0
        self._held: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable) -> T | None:
        """Return what is kept under a key."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key][0]

    def put(self, key: Hashable, made: T, size_bytes: int) -> None:
        """Keep something, and let old ones go."""
        if size_bytes > self.share * self.most_bytes:
            return
        with self._lock:
            if key in self._held:
                return
            self._held[key] = made, size_bytes
            self.size_bytes += size_bytes
            while self.size_bytes > self.most_bytes or (self.most and len(self._held) > self.most):
                self.size_bytes -= self._held.popitem(last=False)[1][1]
