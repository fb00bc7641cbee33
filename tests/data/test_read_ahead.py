"""Items are taken ahead by a thread, in order; errors come in their place; closing ends the thread."""

from __future__ import annotations

import itertools
import threading

import pytest

from qwen3vl_core.data.read_ahead import ReadAhead


def test_items_come_in_order_and_no_more_than_allowed_are_taken_ahead():
    taken, waiting = [], threading.Event()

    def source():
        for number in itertools.count():
            taken.append(number)
            if number == 3:
                # two in the queue, one that waits for room, and this
                waiting.set()
            yield number

    ahead = ReadAhead(source(), 2)
    try:
        assert [next(ahead) for _ in range(1)] == [0]
        assert waiting.wait(30) and taken == [0, 1, 2, 3]
        assert [next(ahead) for _ in range(5)] == [1, 2, 3, 4, 5]
    finally:
        ahead.close()


def test_an_error_of_the_source_is_raised_in_its_place_and_again():
    def source():
        yield 1
        raise ValueError("the shard ends here")

    ahead = ReadAhead(source(), 4)
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="the shard ends here"):
            next(ahead)
    ahead.close()


def test_closing_ends_a_thread_that_waits_for_room():
    ahead = ReadAhead(itertools.count(), 1)
    assert next(ahead) == 0
    ahead.close()
    assert not ahead._thread.is_alive()
