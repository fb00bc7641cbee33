"""The two ways in which a command ends badly, and the exit codes they stand for."""

from __future__ import annotations

from qwen3vl_core.problems import Problem

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_REQUEST = 2


class RequestError(ValueError):
    """The request was wrong (exit code 2), in one way or in several.

    problems: each a record, or its line where nothing reads more of it: what, where, the rule and the way out. `str()` gives a
    line for each.
    """

    exit_code = EXIT_REQUEST

    def __init__(self, *problems: Problem | str) -> None:
        super().__init__(*problems)
        self.problems = tuple(p if isinstance(p, Problem) else Problem("request", rule={"text": str(p)}) for p in problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class WorkError(RuntimeError):
    """The request was sound and the work failed: one line that says what, where and the way out (exit code 1)."""

    exit_code = EXIT_FAILED
