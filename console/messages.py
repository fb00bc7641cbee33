"""Messages from worker threads to the screens. Each is a complete snapshot, so that a later one may replace an earlier one."""

from __future__ import annotations

from typing import Any

from textual.message import Message


class StoreSeen(Message):
    """The run store `root` was looked at."""

    def __init__(self, root: Any, snapshot: Any) -> None:
        self.root, self.snapshot = root, snapshot
        super().__init__()


class StoresFound(Message):
    """Other run stores of this machine were looked for."""

    def __init__(self, stores: Any) -> None:
        self.stores = stores
        super().__init__()


class GpusSeen(Message):
    """The GPUs of this machine were looked at."""

    def __init__(self, lines: Any) -> None:
        self.lines = lines
        super().__init__()


class RunStarted(Message):
    """A run was created and its supervisor is running. queued: what it waits for; empty if its command runs."""

    def __init__(self, run_id: str, kind: str, origin: str, queued: str = "") -> None:
        self.run_id, self.kind, self.origin, self.queued = run_id, kind, origin, queued
        super().__init__()


class RunChanged(Message):
    """A run was asked to stop, or resumed."""

    def __init__(self, run_id: str, text: str) -> None:
        self.run_id, self.text = run_id, text
        super().__init__()


class QueueChanged(Message):
    """The order of the queue was changed, or an entry of it; then: what shows it."""

    def __init__(self, then: Any) -> None:
        self.then = then
        super().__init__()


class CheckSeen(Message):
    """A check of a run's files in the background was looked at."""

    def __init__(self, run_id: str, text: str, done: bool, damaged: bool) -> None:
        self.run_id, self.text, self.done, self.damaged = run_id, text, done, damaged
        super().__init__()


class RunsDeleted(Message):
    """Runs were deleted."""

    def __init__(self, run_ids: list[str], freed: int) -> None:
        self.run_ids, self.freed = run_ids, freed
        super().__init__()


class WorkDone(Message):
    """Something is ready: its title, and its link."""

    def __init__(self, title: str, text: str) -> None:
        self.title, self.text = title, text
        super().__init__()


class WorkFailed(Message):
    """Work in a thread failed; one line."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__()


class RunRead(Message):
    """Metrics and log of the monitor's run were read."""

    def __init__(self, view: Any) -> None:
        self.view = view
        super().__init__()


class LogRead(Message):
    """The whole log of a run was read, and if there is a needle, searched for it."""

    def __init__(self, run_id: str, whole: Any, needle: str, hits: list[int]) -> None:
        self.run_id, self.whole, self.needle, self.hits = run_id, whole, needle, hits
        super().__init__()


class PlanChecked(Message):
    """A revision of the form was checked against the disk and the machine."""

    def __init__(self, revision: int, check: Any) -> None:
        self.revision, self.check = revision, check
        super().__init__()


class CaptionsRead(Message):
    """Captions of the shown compare run were read."""

    def __init__(self, run_id: str, samples: Any) -> None:
        self.run_id, self.samples = run_id, samples
        super().__init__()


class PictureRead(Message):
    """A picture was read and scaled down for a terminal, or could not be read."""

    def __init__(self, path: str, picture: Any, problem: str = "") -> None:
        self.path, self.picture, self.problem = path, picture, problem
        super().__init__()


class ThreadAnswer(Message):
    """The result of work in a thread, for the screen that started it; `what` names the work."""

    def __init__(self, what: str, value: Any) -> None:
        self.what, self.value = what, value
        super().__init__()
