"""Takes items from an iterator in a thread, while the last ones are trained on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
JOIN_SECONDS = 5.0


class ReadAhead(Iterator[T], Generic[T]):
    """The items of an endless `source`, up to `count` of them ahead. An error of the source is raised in its place; `close` ends the
    thread, after which the source can be shut down."""

    def __init__(self, source: Iterator[T], count: int) -> None:
        self._items: queue.Queue[T | BaseException] = queue.Queue(count)
        self._source, self._closed = source, threading.Event()
        # a daemon: a process that ends does not wait for it
        self._thread = threading.Thread(target=self._read, name="read-ahead", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._closed.is_set():
            item: T | BaseException
            try:
                item = next(self._source)
            except BaseException as error:
                item = error
            self._items.put(item)
            if isinstance(item, BaseException):
                return

    def __next__(self) -> T:
        item = self._items.get()
        if isinstance(item, BaseException):
            # whoever asks again gets it again
            self._items.put(item)
            raise item
        return item

    def close(self) -> None:
        """Read no more. Items that were read and not taken are dropped."""
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._items.get_nowait()
            except queue.Empty:
                self._thread.join(JOIN_SECONDS)
                break
