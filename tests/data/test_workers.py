"""Tasks spread over processes: results in order, errors as they were raised, nobody waiting for the dead."""

from __future__ import annotations

import os
import signal

import pytest

from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.workers import Workers
from qwen3vl_core.errors import RequestError, WorkError


def _uneven(state, number):
    # the first of each four takes longest, so that its results come last
    return state, number, sum(range(200_000 if number % 4 == 0 else 0)) and number, os.getpid()


def _doubled(state, data):
    return data + data


def _fails(state, number):
    if number == 5:
        raise OSError(28, "No space left on device", "there")
    return number


class TwoWordsError(Exception):
    """One that can be written and not be read again."""

    def __init__(self, first, second):
        super().__init__(first)


def _fails_oddly(state, number):
    raise TwoWordsError("a", "b")


def _dies(state, number):
    if os.getpid() != state:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("plain", [False, True], ids=["any", "plain"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_the_tasks_order(count, plain):
    with Workers(count, "state") as workers:
        for _ in range(2):
            found = list(workers.map(_uneven, range(40), plain=plain))
            assert [number for _, number, _, _ in found] == list(range(40)) and {state for state, *_ in found} == {"state"}
    # each process has done something, this one too
    assert len({process for *_, process in found}) == count and os.getpid() in {process for *_, process in found}


def test_large_tasks_and_results_do_not_block_each_other():
    data = [bytes([number]) * (3 << 20) for number in range(12)]
    with Workers(3, None) as workers:
        assert all(result == task + task for task, result in zip(data, workers.map(_doubled, data, plain=True), strict=True))


def test_an_error_comes_through_as_it_was_raised():
    with Workers(2, None) as workers:
        with pytest.raises(OSError, match="No space left") as failed:
            list(workers.map(_fails, range(100)))
        assert (failed.value.errno, failed.value.filename) == (28, "there")
        with pytest.raises((TwoWordsError, WorkError), match="a"):
            list(workers.map(_fails_oddly, range(4)))
        # and the next one starts anew
        assert list(workers.map(_doubled, [1, 2, 3])) == [2, 4, 6]


def test_what_the_tasks_raise_ends_the_work():
    def tasks():
        yield from range(7)
        raise RequestError("the list ends in the middle of a record")

    with Workers(3, None) as workers, pytest.raises(RequestError, match="in the middle"):
        list(workers.map(_doubled, tasks()))


def test_an_error_of_this_process_is_no_different():
    with Workers(1, None) as workers, pytest.raises(DataError):
        next(workers.map(lambda state, task: (_ for _ in ()).throw(DataError("too-long", tokens=2, most=1)), [1, 2]))


def test_a_process_that_is_killed_ends_the_work_in_one_line():
    with Workers(3, os.getpid()) as workers, pytest.raises(WorkError, match=r"a worker process was killed.*use fewer --workers"):
        list(workers.map(_dies, range(50)))


def test_work_given_up_half_way_leaves_no_process():
    with Workers(3, "state") as workers:
        begun = workers.map(_uneven, range(1000))
        processes = {next(begun)[-1] for _ in range(20)} - {os.getpid()}
        begun.close()  # type: ignore[attr-defined]  # a generator
        for process in processes:
            with pytest.raises(ProcessLookupError):
                os.kill(process, 0)
