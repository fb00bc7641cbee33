"""`qwen3vl notify`: shows who is told about runs without a --notify of their own, and sends a test message."""

from __future__ import annotations

import sys
import time

from console.runs import send_message
from console.runs.state import host
from qwen3vl_core import notify as notifying
from qwen3vl_core.argument_parser import Parser
from qwen3vl_core.errors import EXIT_DONE, EXIT_FAILED, RequestError
from qwen3vl_core.language import filled
from qwen3vl_core.run_record import VERSION
from qwen3vl_core.settings_path import settings_file


def notify_parser() -> Parser:
    """The parser of `qwen3vl notify`."""
    parser = Parser(
        prog="qwen3vl notify", allow_abbrev=False,
        description="Who is told when a finetune ends, fails, stalls or turns NaN: the addresses given, else those of the settings.",
    )  # fmt: skip
    parser.add_argument("addresses", nargs="*", metavar="ADDRESS", help="as for finetune --notify: dingtalk:URL, env:NAME, …")
    parser.add_argument("--command", default=None, metavar="TEXT", help="as for finetune --notify-command")
    parser.add_argument("--test", action="store_true", help="send a test message, and say who took it")
    return parser


def notify(arguments: list[str]) -> int:
    """Print who is told; with --test tell them. Returns the exit code: 1 where a message was not taken. Raises RequestError."""
    args = notify_parser().parse_args(arguments)
    for text in args.addresses:
        notifying.check(text)
    if args.command is not None:
        notifying.check_command(args.command)
    to = notifying.receivers(args.addresses, args.command)
    for line in to.problems:
        print(f"qwen3vl: {line}", file=sys.stderr)
    if not to:
        if to.problems:
            return EXIT_FAILED
        raise RequestError(filled("notify: nobody is told; give an address, or write notify: into {}", settings_file()))
    if not args.test:
        print(f"told of the end of a run, of failures, stalls and NaN: {to.shown}\nqwen3vl notify --test sends a message to try them")
        return EXIT_FAILED if to.problems else EXIT_DONE
    message = {
        "v": VERSION, "event": notifying.TEST, "text": "a test of qwen3vl notify; no run has changed", "run": "test", "host": host(),
        "time": round(time.time(), 3),
    }  # fmt: skip
    began = time.monotonic()

    def told(name: str, failure: str) -> None:
        print(failure or f"{name}: taken in {time.monotonic() - began:.1f} s", file=sys.stderr if failure else sys.stdout, flush=True)

    return EXIT_FAILED if send_message.send(to, message, told) or to.problems else EXIT_DONE
