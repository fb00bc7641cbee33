"""The two errors that a command ends with, and their exit codes."""

from __future__ import annotations

from qwen3vl_core.problems import Problem

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_REQUEST = 2


class RequestError(ValueError):
    """The request was invalid (exit code 2): one problem or several.

    problems: records, or plain lines where no program reads more of them: what, where, the rule and the fix. `str()` gives one
    line for each.
    """

    exit_code = EXIT_REQUEST

    def __init__(self, *problems: Problem | str) -> None:
        super().__init__(*problems)
        self.problems = tuple(p if isinstance(p, Problem) else Problem("request", rule={"text": str(p)}) for p in problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class WorkError(RuntimeError):
    """The request was valid and the work failed: one line that says what, where and the fix (exit code 1)."""

    exit_code = EXIT_FAILED
