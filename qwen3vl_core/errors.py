"""The two ways in which a command ends badly, and the exit codes they stand for."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_REQUEST = 2


class RequestError(ValueError):
    """The request was wrong: one line that says what, where, the rule and the way out (exit code 2)."""

    exit_code = EXIT_REQUEST


class WorkError(RuntimeError):
    """The request was sound and the work failed: one line that says what, where and the way out (exit code 1)."""

    exit_code = EXIT_FAILED
