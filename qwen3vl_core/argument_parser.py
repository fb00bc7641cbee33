"""The argument parser of every command: its problems are records like those of the options."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from qwen3vl_core.cells import wrapped
from qwen3vl_core.colour import paint
from qwen3vl_core.errors import RequestError
from qwen3vl_core.examples import epilog
from qwen3vl_core.language import filled, tr

if TYPE_CHECKING:
    from qwen3vl_core.problems import Problem

PROBLEMS = "problems"
"""Where a namespace holds problems of the words that were read, if there are any; `read_problems` takes them."""


class _Help(argparse.HelpFormatter):
    """Help in the user's language, whose examples keep their lines; headings are bold on a terminal."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n  qwen3vl " in text:
            head, _, lines = text.partition("\n")
            return f"{tr(head)}\n{lines}"
        text = tr(" ".join(text.split()))
        return super()._fill_text(text, width, indent) if text.isascii() else "\n".join(indent + line for line in wrapped(text, width))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return super()._split_lines(text, width) if text.isascii() else wrapped(text, width)

    def _get_help_string(self, action: argparse.Action) -> str:
        return tr(action.help or "")

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None = None) -> None:
        super().add_usage(usage, actions, groups, tr("usage: ") if prefix is None else prefix)

    def start_section(self, heading: str | None) -> None:
        super().start_section(paint(tr(heading), "bold") if heading else heading)


def close_to(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word that was probably meant; None if none is close."""
    from difflib import get_close_matches

    lower = {one.lower(): one for one in reversed(list(known))}
    near = get_close_matches(word.lower(), list(lower), n=1, cutoff=cutoff)
    return lower[near[0]] if near else None


class Parser(argparse.ArgumentParser):
    """Raises RequestError for invalid and missing arguments, with every problem that does not keep the others from being read.

    collect: leave those in the namespace, for `read_problems`. Its help ends with the command's examples.
    """

    def __init__(self, *args: Any, collect: bool = False, **kwargs: Any) -> None:
        kwargs["exit_on_error"] = False
        kwargs.setdefault("formatter_class", _Help)
        super().__init__(*args, **kwargs)
        self.register("type", Path, _path)
        if self.epilog is None:
            self.epilog = epilog(self.prog.removeprefix("qwen3vl").strip())
        self.collect = collect
        self.needed: list[argparse.Action] = []

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None) -> argparse.Namespace:  # type: ignore[override]  # argparse has overloads
        given, _ = self.parse_known_args(args, namespace)
        if not self.collect and (problems := read_problems(vars(given))):
            raise RequestError(*problems)
        return given

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        """No word is left: what is not known is a problem."""
        for action in self._actions:
            # a positional argument of any number of words counts as required although it may have none
            if action.required and action.nargs != argparse.ZERO_OR_MORE:
                # argparse would stop at what is missing
                action.required = False
                self.needed.append(action)
        try:
            given, unknown = super().parse_known_args(args, namespace)
        except argparse.ArgumentError as error:
            named = {"written": error.argument_name} if error.argument_name else {}
            raise RequestError(_problem("argument", **named, reason=error.message, command=self.prog)) from None
        problems = [*self._unknown(unknown), *(self._missing(a) for a in self.needed if getattr(given, a.dest, None) in (None, []))]
        if problems:
            setattr(given, PROBLEMS, [*getattr(given, PROBLEMS, ()), *problems])
        return given, []

    def _missing(self, action: argparse.Action) -> Problem:
        name = action.option_strings[0] if action.option_strings else action.metavar or action.dest
        return _problem("required", written=name, help=action.help or filled("see {} --help", self.prog))

    def _unknown(self, words: list[str]) -> list[Problem]:
        """A problem for each unknown option, the words behind it with it, and for each word in front of them."""
        problems = []
        known = [flag.lstrip("-") for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        while words:
            first, words = words[0], words[1:]
            if not first.startswith("-"):
                problems.append(_problem("argument-too-many", written=first, command=self.prog))
                continue
            values = []
            while words and not words[0].startswith("-"):
                values.append(words.pop(0))
            near = close_to(first.partition("=")[0].lstrip("-"), known, 0.7)
            advice = filled("use --{}", near) if near else filled("see {} --help", self.prog)
            problems.append(_problem("argument-unknown", written=" ".join([first, *values]), advice=advice))
        return problems

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = "/".join(action.option_strings) or action.metavar or action.dest
            near = close_to(str(value), map(str, action.choices))
            code, more = ("not-a-choice-near", {"near": near}) if near else ("not-a-choice", {})
            raise RequestError(_problem(code, written=f"{name} {value}", choices=list(action.choices), **more))

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see {self.prog} --help")


def _problem(code: str, **rule: Any) -> Problem:
    # imported late: the first frame needs a parser, and has no problem
    from qwen3vl_core.problems import Problem

    return Problem(code, rule=rule)


def read_problems(values: dict[str, Any]) -> list[Problem]:
    """Take the problems of a parsed command line out of its values."""
    return values.pop(PROBLEMS, [])


def _path(word: str) -> Path:
    """A path whose ~ or ~USER can be expanded."""
    if word.startswith("~") and os.path.expanduser(word) == word:
        raise argparse.ArgumentTypeError(f"{word}: there is no user {word.partition('/')[0][1:]} here; write ./~… for a name")
    return Path(word)


def port(word: str) -> int:
    """A port, as the type of an argument."""
    if not word.isdecimal() or not 1 <= int(word) <= 65535:
        raise argparse.ArgumentTypeError(f"{word}: must be a port from 1 to 65535; leave it out")
    return int(word)
