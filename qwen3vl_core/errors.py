"""The two errors that a command ends with, and their exit codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen3vl_core.log_lines import UNTAGGED, WORK_FAILED, written

if TYPE_CHECKING:
    from qwen3vl_core.problems import Problem

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_REQUEST = 2


class RequestError(ValueError):
    """The request was invalid (exit code 2): one problem or several.

    problems: records, or plain lines of text (what, where, the rule, the fix) where no program needs more. `str()` gives one
    line for each.
    """

    exit_code = EXIT_REQUEST

    def __init__(self, *problems: Problem | str) -> None:
        super().__init__(*problems)
        # imported late: the first frame needs the class of the error, and raises none
        from qwen3vl_core.formats import one_clear_line
        from qwen3vl_core.problems import Problem

        self.problems = tuple(p if isinstance(p, Problem) else Problem("request", rule={"text": one_clear_line(p)}) for p in problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))

    @property
    def shown(self) -> str:
        """The same in the user's language."""
        return "\n".join(problem.shown for problem in self.problems)

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the lines alone, as the request is wrong, not the code that refused it."""
        return [f"✗ {problem.shown}" for problem in self.problems]


class WorkError(RuntimeError):
    """The request was valid and the work failed: one line that says what, where and the fix (exit code 1).

    tag: of that line in a run's log, where programs tell this failure from others.
    """

    exit_code = EXIT_FAILED

    def __init__(self, text: str, tag: str = WORK_FAILED) -> None:
        from qwen3vl_core.formats import one_clear_line

        super().__init__(one_clear_line(text))
        self.tag = tag

    @property
    def shown(self) -> str:
        """The text in the user's language."""
        from qwen3vl_core.language import phrase

        return phrase(self.args[0])

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows."""
        return [f"✗ {self.shown}"]


def error_lines(error: RequestError | WorkError, in_a_run: bool) -> list[str]:
    """What a command prints for an error, a line for each problem; in a run's log each has a tag. Names in it cannot steer a terminal, and
    addresses are without their secrets."""
    from qwen3vl_core.addresses import without_secrets
    from qwen3vl_core.formats import printable

    if isinstance(error, WorkError):
        lines = [(str(error) if in_a_run else error.shown, error.tag)]
    else:
        lines = [(str(problem) if in_a_run else problem.shown, problem.code) for problem in error.problems]
    return [written(printable(without_secrets(text)), tag if in_a_run else UNTAGGED) for text, tag in lines]
