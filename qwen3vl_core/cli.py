"""The `qwen3vl` command. Thin, as the console's first frame waits for it: `command_line.py` parses the command line.

Exit codes: 0 done, 1 the work failed, 2 the request was invalid (one line that says what, where, the rule, the fix).
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable, Mapping

from qwen3vl_core import log_lines
from qwen3vl_core.entry_points import CONSOLE_COMMANDS, registered
from qwen3vl_core.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEST, RequestError, WorkError, error_lines
from qwen3vl_core.run_record import RUN_VARIABLE


def dispatch(arguments: list[str], commands: Mapping[str, Callable[[list[str]], int]] | None = None) -> int:
    """Run a command line. Returns the exit code; raises RequestError or WorkError.

    commands: the console's commands, if the console is the caller; by default they are looked up among the installed packages.
    """
    words = _with_store([a for a in arguments if a != "--debug"])
    if not words and sys.stdout.isatty():
        words = ["console"]
    if words and words[0] in CONSOLE_COMMANDS:
        command = commands[words[0]] if commands is not None else registered("qwen3vl.commands", words[0])
        return command(words[1:])
    # imported late: the console's first frame does not need it
    command_line = importlib.import_module("qwen3vl_core.command_line")
    parser = command_line.build_parser()
    values = vars(parser.parse_args(words))
    values.pop("debug")
    name = values.pop("command")
    if name in (None, "demo") and (problems := command_line.read_problems(values)):
        raise RequestError(*problems)
    if name is None:
        parser.print_help()
        return EXIT_DONE
    if name == "demo":
        return importlib.import_module("qwen3vl_core.demo.run").main(dispatch, **values)
    if name in ("plan", "recipe", "doctor"):
        return command_line.run_planner(name, values)
    return command_line.run_work(name, values)


def _with_store(words: list[str]) -> list[str]:
    """`qwen3vl --runs DIR` is the console on that store, and `qwen3vl --runs DIR COMMAND …` gives the command its --runs."""
    if not words or words[0].partition("=")[0] != "--runs":
        return words
    count = 1 if "=" in words[0] else 2
    store, rest = words[:count], words[count:] or ["console"]
    return [rest[0], *store, *rest[1:]]


def main(arguments: list[str] | None = None, commands: Mapping[str, Callable[[list[str]], int]] | None = None) -> int:
    """The `qwen3vl` command. Shows a traceback only with `--debug` or `QWEN3VL_DEBUG=1`. Takes the arguments of `dispatch`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--debug" in arguments or os.environ.get("QWEN3VL_DEBUG") == "1":
        return dispatch(arguments, commands)
    try:
        return dispatch(arguments, commands)
    except (RequestError, WorkError) as error:
        from qwen3vl_core.colour import paint  # here and below: the console's first frame has no error

        for line in error_lines(error, in_a_run=RUN_VARIABLE in os.environ):
            head, colon, text = line.partition(": ")
            print(paint(head + colon, "red", sys.stderr) + text, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        _say("stopped", log_lines.INTERRUPTED)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # the reader has exited (`qwen3vl runs | head`): avoid another error when stdout is flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except PermissionError as error:
        _say(f"{error.filename}: permission denied; choose a folder that you may write to", log_lines.UNEXPECTED)
        return EXIT_REQUEST
    except Exception as error:
        from qwen3vl_core.files import disk_full

        if (failed := disk_full(error)) is not None:
            _say(f"{failed.filename or 'a file'}: the disk is full; free some space and run the command again", log_lines.WORK_FAILED)
            return EXIT_FAILED
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            _say(f"{str(error.filename or 'a path')[:60]}…: the name is too long; correct the path", log_lines.UNEXPECTED)
            return EXIT_REQUEST
        if isinstance(error, OSError) and error.errno == errno.EIO:
            _say(
                f"{error.filename or 'a file'}: the disk failed ({error.strerror}); see dmesg, and run the command again",
                log_lines.WORK_FAILED,
            )
            return EXIT_FAILED
        _say(f"{type(error).__name__}: {error}; run again with --debug for the traceback", log_lines.UNEXPECTED)
        return EXIT_FAILED


def _say(text: str, tag: str) -> None:
    from qwen3vl_core.addresses import without_secrets
    from qwen3vl_core.formats import printable

    text = printable(without_secrets(text))
    print(log_lines.written(text, tag if RUN_VARIABLE in os.environ else log_lines.UNTAGGED), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
