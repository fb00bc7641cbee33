"""`qwen3vl completion bash|zsh|fish`: a script that completes commands, options, their values and the ids of runs.

Made of the parsers, so that it knows what they know. Only ids are looked up while completing, by the shell itself, without Python.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen3vl_core.argument_parser import Parser
from qwen3vl_core.errors import EXIT_DONE
from qwen3vl_core.language import tr

SHELLS = ("bash", "zsh", "fish")
RUNS = "runs"
"""The command whose first word is an action."""
RUN_WORDS = ("id", "ids", "a", "b")
"""Positional arguments that are runs."""
PATHS = ("DIR", "FILE", "FOLDER", "MODEL", "CHECKPOINT", "DATASET", "PICTURES", "CAPTIONS", "SOURCE", "TARGET", "PATH")
"""Names of values that are paths."""
NAME = "_qwen3vl"
COMMENT = "completion of qwen3vl; qwen3vl completion --help says how to install it"


@dataclass(frozen=True)
class Flag:
    """One option of a command."""

    names: tuple[str, ...]
    help: str
    choices: tuple[str, ...] = ()
    takes: str = ""
    """What its value is: `path`, `value`, or empty for none."""


@dataclass
class Command:
    """A command or an action of `runs`."""

    key: str
    """`finetune`, `runs show`; empty for `qwen3vl` itself."""
    help: str = ""
    flags: list[Flag] = field(default_factory=list)
    runs: bool = False
    """Whether its words are runs."""
    choices: tuple[str, ...] = ()
    """Of its first word."""


def completion(arguments: list[str]) -> int:
    """Print the script. Returns the exit code; raises RequestError."""
    about = (
        'Completion of commands, options, values and runs. bash: eval "$(qwen3vl completion bash)" in ~/.bashrc; zsh: the same in '
        "~/.zshrc, after compinit; fish: write it to ~/.config/fish/completions/qwen3vl.fish."
    )
    parser = Parser(prog="qwen3vl completion", description=about, allow_abbrev=False)
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")
    makers: dict[str, Callable[[list[Command]], Iterator[str]]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    print("\n".join(makers[parser.parse_args(arguments).shell](commands())))
    return EXIT_DONE


def commands() -> list[Command]:
    """`qwen3vl` itself, every command, every action of `runs`."""
    # imported late: only this command needs all parsers
    from console.command_parsers import console_parser, notebook_parser
    from console.notify_command import notify_parser
    from console.runs_command import parser as runs_parser
    from qwen3vl_core.command_line import HELP, build_parser

    root = build_parser()
    own = {"console": console_parser, "notebook": notebook_parser, "notify": notify_parser, RUNS: runs_parser}
    found = [_read("", "", root)]
    found[0].flags.append(Flag(("--runs",), "the run store", takes="path"))
    for name, sub in _subs(root).items():
        if name == "completion":
            found.append(Command(name, tr(HELP[name]), choices=SHELLS))
            continue
        parser = own[name]() if name in own else sub
        found.append(_read(name, HELP[name], parser))
        helps = {choice.dest: choice.help or "" for action in _sub_actions(parser) for choice in action._choices_actions}
        found += [_read(f"{name} {word}", helps.get(word, ""), one) for word, one in _subs(parser).items()]
    return found


def _sub_actions(parser: argparse.ArgumentParser) -> list[argparse._SubParsersAction[Any]]:
    return [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]


def _subs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {name: sub for action in _sub_actions(parser) for name, sub in action.choices.items()}


def _read(key: str, help: str, parser: argparse.ArgumentParser) -> Command:
    command = Command(key, tr(help))
    for action in parser._actions:
        declared = getattr(action, "declared", None)
        choices = tuple(map(str, declared.choices if declared is not None else action.choices or ()))
        if action.option_strings:
            metavar = action.metavar if isinstance(action.metavar, str) else ""
            path = metavar in PATHS or bool(declared is not None and declared.path)
            takes = "" if action.nargs == 0 else "path" if path else "value"
            text = "" if action.help is argparse.SUPPRESS else tr(action.help or "").replace("%%", "%")
            command.flags.append(Flag(tuple(action.option_strings), text.partition("; ")[0].partition(" (")[0], choices, takes))
        elif not isinstance(action, argparse._SubParsersAction):
            command.runs = command.runs or (key.startswith(RUNS + " ") and action.dest in RUN_WORDS)
            if choices and not command.choices:
                command.choices = choices
    return command


def _words(command: Command) -> list[str]:
    return [name for flag in command.flags for name in flag.names if name.startswith("--")]


def _below(found: list[Command], key: str) -> list[Command]:
    """The commands of `qwen3vl`, or the actions of a command."""
    return [one for one in found if one.key and one.key.rpartition(" ")[0] == key]


_STORE = """\
{name}_runs() {{
  local dir="${{QWEN3VL_RUNS:-$HOME/.qwen3vl/runs}}" word before="" one
  for word in "$@"; do
    [[ $before == --runs ]] && dir="${{word/#\\~/$HOME}}"
    [[ $word == --runs=* ]] && dir="${{word#--runs=}}"
    before=$word
  done
  for one in "$dir"/[0-9][0-9][0-9][0-9]*-*/; do
    one="${{one%/}}"
    [[ -d $one ]] && printf '%s\\n' "${{one##*/}}"
  done
}}"""


def _bash(found: list[Command]) -> Iterator[str]:
    yield f"# {COMMENT}"
    yield _STORE.format(name=NAME)
    yield f"{NAME}() {{"
    yield '  local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}" key="" words="" i'
    yield from _find_key("COMP_WORDS[i]", "i = 1; i < COMP_CWORD; i++")
    yield '  case "$key $prev" in'
    files = 'COMPREPLY=($(compgen -f -- "$cur")); compopt -o filenames 2>/dev/null; '
    yield from _values(found, lambda choices: f'COMPREPLY=($(compgen -W {shlex.quote(" ".join(choices))} -- "$cur")); ', files)
    yield "  esac"
    yield '  case "$key" in'
    for command in found:
        words = [*_words(command), *(one.key.rpartition(" ")[2] for one in _below(found, command.key)), *command.choices]
        more = f' $({NAME}_runs "${{COMP_WORDS[@]}}")' if command.runs else ""
        yield f'    {shlex.quote(command.key)}) words={shlex.quote(" ".join(words))}"{more}";;'
    yield "  esac"
    yield '  COMPREPLY=($(compgen -W "$words" -- "$cur"))'
    with_files = "|".join(shlex.quote(one.key) for one in found if one.key and not one.runs and one.key != RUNS)
    yield f'  if [[ ${{#COMPREPLY[@]}} -eq 0 && $cur != -* ]]; then case "$key" in {with_files}) ' \
          'COMPREPLY=($(compgen -f -- "$cur")); compopt -o filenames 2>/dev/null;; esac; fi'  # fmt: skip
    yield "}"
    yield f"complete -F {NAME} qwen3vl"


def _find_key(word: str, loop: str) -> Iterator[str]:
    """Shell lines that set `key` to the command, and for `runs` its action."""
    yield f"  for (({loop})); do"
    yield f'    case "${{{word}}}" in'
    yield "      --runs) ((i++));;"
    yield "      -*) ;;"
    yield f'      *) if [[ -z $key ]]; then key="${{{word}}}"; elif [[ $key == {RUNS} ]]; then key="$key ${{{word}}}"; fi;;'
    yield "    esac"
    yield "  done"


def _values(found: list[Command], choose: Callable[[Sequence[str]], str], files: str) -> Iterator[str]:
    """Shell cases of what follows an option that takes a value. choose: the command that offers its choices; files: that offers files."""
    for command in found:
        for flag in command.flags:
            patterns = "|".join(shlex.quote(f"{command.key} {name}") for name in flag.names)
            if flag.choices or flag.takes:
                yield f"    {patterns}) {choose(flag.choices) if flag.choices else files if flag.takes == 'path' else ''}return;;"


def _zsh(found: list[Command]) -> Iterator[str]:
    def described(pairs: list[tuple[str, str]]) -> str:
        return " ".join(shlex.quote(f"{name}:{text}".replace("`", "")) for name, text in pairs)

    yield "#compdef qwen3vl"
    yield f"# {COMMENT}"
    yield _STORE.format(name=NAME)
    yield f"{NAME}() {{"
    yield '  local key="" prev="$words[CURRENT-1]" i'
    yield "  local -a options first"
    yield from _find_key("words[i]", "i = 2; i < CURRENT; i++")
    yield '  case "$key $prev" in'
    yield from _values(found, lambda choices: f"compadd -- {' '.join(map(shlex.quote, choices))}; ", "_files; ")
    yield "  esac"
    yield '  case "$key" in'
    for command in found:
        flags = [(name, flag.help) for flag in command.flags for name in flag.names if name.startswith("--")]
        first = [(one.key.rpartition(" ")[2], one.help) for one in _below(found, command.key)] + [(c, "") for c in command.choices]
        ids = f' first+=(${{(f)"$({NAME}_runs "${{words[@]}}")"}});' if command.runs else ""
        yield f"    {shlex.quote(command.key)}) options=({described(flags)}); first=({described(first)});{ids};;"
    yield "  esac"
    yield "  if [[ $words[CURRENT] == -* ]]; then _describe -o option options"
    yield "  elif (( ${#first} )); then _describe command first; else _files; fi"
    yield "}"
    yield f"compdef {NAME} qwen3vl"


def _fish(found: list[Command]) -> Iterator[str]:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    yield f"# {COMMENT}"
    yield """function __qwen3vl_key
  set -l key
  set -l words (commandline -opc)
  set -e words[1]
  set -l skip 0
  for word in $words
    if test $skip = 1
      set skip 0
    else if test $word = --runs
      set skip 1
    else if not string match -q -- '-*' $word
      if test -z "$key"
        set key $word
      else if test "$key" = runs
        set key "runs $word"
      end
    end
  end
  echo $key
end
function __qwen3vl_is
  set -l key (__qwen3vl_key)
  test "$key" = "$argv"
end
function __qwen3vl_runs
  set -l dir $QWEN3VL_RUNS
  test -n "$dir"; or set dir ~/.qwen3vl/runs
  set -l words (commandline -opc)
  for i in (seq (count $words))
    if test $words[$i] = --runs; and test $i -lt (count $words)
      set dir (string replace -r '^~' $HOME $words[(math $i + 1)])
    end
  end
  for one in $dir/*-*/
    string match -r '\\d{4,}-[^/]*(?=/$)' $one
  end
end"""
    for command in found:
        condition = quoted(f"__qwen3vl_is {command.key}".rstrip())
        begin = f"complete -c qwen3vl -n {condition}"
        for one in _below(found, command.key):
            yield f"{begin} -f -a {quoted(one.key.rpartition(' ')[2])} -d {quoted(one.help)}"
        if command.choices:
            yield f"{begin} -f -a {quoted(' '.join(command.choices))}"
        if command.runs:
            yield f"{begin} -f -a '(__qwen3vl_runs)'"
        for flag in command.flags:
            names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names)
            value = f" -x -a {quoted(' '.join(flag.choices))}" if flag.choices else {"path": " -r", "value": " -x"}.get(flag.takes, "")
            yield f"{begin} {names}{value} -d {quoted(flag.help)}"
