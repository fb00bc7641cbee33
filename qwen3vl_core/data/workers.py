"""A process pool that returns results in order. Imports no torch.

A process is sent its next task while it still runs one, and reads it in a separate thread: no process is idle between tasks,
and two sides that write at the same time cannot deadlock. The calling process runs tasks too instead of waiting.
"""

from __future__ import annotations

import contextlib
import gc
import marshal
import multiprocessing
import os
import pickle
import queue
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from multiprocessing.connection import Connection
from typing import Any

from qwen3vl_core.errors import WorkError
from qwen3vl_core.process_death import death_with_parent

MOST_WORKERS = 16
_QUEUED = 2
"""Tasks queued per process: the running one and the next. More would wait there while other processes are idle."""
_AHEAD = 4
"""Finished results per process that may wait for an earlier one of another process."""
_COLLECTIONS = (50_000, 20, 100)
"""Thresholds of the garbage collector: records and samples are many small objects without cycles, scanned again and again."""
_DONE, _FAILED = 0, 1


class Workers:
    """`with Workers(count, state) as workers: for result in workers.map(method, tasks)`; results in the tasks' order.

    count: 0 is one per core, where the work is worth starting them. method: a function of (state, task); the state is sent
    to every process once. This process is one of them: a single task, or a count of 1, starts no other.
    """

    def __init__(self, count: int, state: Any) -> None:
        self.count, self._asked = worker_count(count), count > 1
        self._own = state
        self._processes: dict[int, tuple[Connection, multiprocessing.process.BaseProcess]] = {}
        # by file descriptor, which `poll` returns
        self._poll = select.poll()

    def __enter__(self) -> Workers:
        self._collections = gc.get_threshold()
        gc.set_threshold(*_COLLECTIONS)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # moves the objects made meanwhile to the oldest generation, so that they are not scanned at once
        gc.freeze()
        gc.unfreeze()
        gc.set_threshold(*self._collections)
        self._stop(at_once=kind is not None)

    def portion(self, left: int, least: int, most: int) -> int:
        """Size of the next task, given how much work is left: smaller towards the end, so that all processes finish together."""
        return max(least, min(most, left // (4 * self.count)))

    def map(self, method: Callable[[Any, Any], Any], tasks: Iterable[Any], small: bool = False, plain: bool = False) -> Iterator[Any]:
        """small: not worth starting processes for. plain: tasks and results consist of built-in lists, tuples, dictionaries,
        strings, bytes and numbers only, which cost a third to send.

        Raises what a task raises; WorkError when a process is killed.
        """
        tasks = iter(tasks)
        first = list(islice(tasks, 2))
        if self.count <= 1 or len(first) < 2 or (small and not self._asked):
            for task in chain(first, tasks):
                yield method(self._own, task)
            return
        self.start()
        completed = False
        try:
            yield from self._spread(method, chain(first, tasks), plain)
            completed = True
        finally:
            if not completed:
                # stopped early: nobody needs the results of running tasks
                self._stop(at_once=True)

    def _spread(self, method: Callable[[Any, Any], Any], tasks: Iterator[Any], plain: bool) -> Iterator[Any]:
        dumps, loads = (_plain_dumps, marshal.loads) if plain else (pickle.dumps, pickle.loads)
        queued = dict.fromkeys(self._processes, 0)
        results: dict[int, Any] = {}
        sent = yielded = 0
        more = True
        while more or yielded < sent:
            while more and sent - yielded < _AHEAD * self.count:
                least_busy = min(queued, key=queued.__getitem__)
                full = queued[least_busy] >= _QUEUED
                ready = self._poll.poll(0) if full else ()
                if yielded in results or ready:
                    # before running a task here: results are ready to be received or yielded
                    break
                try:
                    task = next(tasks)
                except StopIteration:
                    more = False
                    break
                if full:
                    results[sent] = method(self._own, task)
                else:
                    self._send(least_busy, pickle.dumps((sent, plain, method, dumps(task))))
                    queued[least_busy] += 1
                sent += 1
            if yielded in results:
                yield results.pop(yielded)
                yielded += 1
                continue
            for worker, _ in self._poll.poll() if yielded < sent else ():
                number, status, data = pickle.loads(self._receive(worker))
                if status == _FAILED:
                    raise _failure(data)
                queued[worker] -= 1
                results[number] = loads(data)

    def _send(self, worker: int, message: bytes) -> None:
        try:
            self._processes[worker][0].send_bytes(message)
        except OSError as error:
            raise self._killed() from error

    def _receive(self, worker: int) -> bytes:
        try:
            return self._processes[worker][0].recv_bytes()
        except (EOFError, OSError) as error:
            raise self._killed() from error

    @staticmethod
    def _killed() -> WorkError:
        return WorkError("a worker process was killed, often because memory ran out; use fewer --workers")

    def start(self) -> None:
        """Start the processes unless they run already; called before `map`, they are ready by then."""
        if self._processes or self.count <= 1:
            return
        context = _context()
        forked = context.get_start_method() == "fork"
        for _ in range(self.count - 1):
            own, other = context.Pipe()
            # a forked process inherits this side's ends, and would never see that this side has closed them
            inherited = (*(connection for connection, _ in self._processes.values()), own) if forked else ()
            process = context.Process(target=_serve, args=(other, inherited, self._own, os.getpid()), daemon=True)
            process.start()
            other.close()
            self._processes[own.fileno()] = own, process
            self._poll.register(own.fileno(), select.POLLIN)

    def _stop(self, at_once: bool = False) -> None:
        for worker, (connection, process) in self._processes.items():
            if at_once:
                process.kill()
            self._poll.unregister(worker)
            # a process ends when its connection closes: there is no need to wait until its memory is freed
            connection.close()
        if at_once:
            for _, process in self._processes.values():
                process.join()
        self._processes = {}


def worker_count(wanted: int) -> int:
    """`wanted`, or for 0 as many as there are cores to run on."""
    if wanted:
        return wanted
    with contextlib.suppress(AttributeError):
        return min(len(os.sched_getaffinity(0)), MOST_WORKERS)
    return min(os.cpu_count() or 1, MOST_WORKERS)


def _context() -> Any:
    """Forking takes milliseconds, but locks held by other threads would stay locked in the child."""
    alone = threading.active_count() == 1 and "torch" not in sys.modules
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("fork" if alone and "fork" in methods else "forkserver" if "forkserver" in methods else "spawn")


def _plain_dumps(value: Any) -> bytes:
    # version 2: without references to earlier values, whose search costs more than it saves
    return marshal.dumps(value, 2)


def _serve(connection: Connection, inherited: tuple[Connection, ...], state: Any, parent: int) -> None:
    """A worker process: tasks in, results out, until the parent closes its end."""
    for end in inherited:
        end.close()
    # Ctrl-C reaches the whole group: the parent ends the work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # a parent that is killed while its worker is busy: without this the worker would finish its tasks first
    death_with_parent()()
    if os.getppid() == 1 != parent:
        os._exit(1)
    # existing objects are not scanned again, and stay in memory shared with the parent
    gc.freeze()
    inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_read_on, args=(connection, inbox), daemon=True).start()
    while (message := inbox.get()) is not None:
        number, plain, method, data = pickle.loads(message)
        try:
            result = method(state, marshal.loads(data) if plain else pickle.loads(data))
            answer = (number, _DONE, _plain_dumps(result) if plain else pickle.dumps(result))
        except BaseException as error:
            answer = (number, _FAILED, _pickled(error))
        try:
            connection.send_bytes(pickle.dumps(answer))
        except OSError:
            os._exit(1)


def _read_on(connection: Connection, inbox: queue.SimpleQueue[bytes | None]) -> None:
    while True:
        try:
            inbox.put(connection.recv_bytes())
        except (EOFError, OSError):
            inbox.put(None)
            return


class _WorkerError(Exception):
    """Where in the worker process an error was raised."""

    def __str__(self) -> str:
        return "\n" + self.args[0]


def _pickled(error: BaseException) -> bytes:
    trace = "".join(traceback.format_exception(error))
    with contextlib.suppress(Exception):
        data = pickle.dumps((error, trace))
        # some exceptions can be pickled but not unpickled
        pickle.loads(data)
        return data
    return pickle.dumps((WorkError(f"{type(error).__name__}: {error}"), trace))


def _failure(data: bytes) -> BaseException:
    error, trace = pickle.loads(data)
    error.__cause__ = _WorkerError(trace)
    return error
