"""The `qwen3vl` command as a user types it."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from console import commands
from console.runs_command import parser as runs_parser
from qwen3vl_core.argument_parser import read_problems
from qwen3vl_core.cli import main
from qwen3vl_core.command_line import build_parser
from qwen3vl_core.entry_points import CONSOLE_COMMANDS
from qwen3vl_core.examples import EXAMPLES


def run(*words: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "qwen3vl_core.cli", *words], capture_output=True, text=True, timeout=120, **kwargs)


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["fly"], ["COMMAND fly: must be one of demo, download, prepare"]),
        (["convert"], ["SOURCE: required; model or checkpoint to read", "TARGET: required; folder to write"]),
        (["convert", "a"], ["TARGET: required; folder to write"]),
        (["convert", "a", "b", "c", "--layuot", "pai", "--fast"],
         ["c: one word too many; see qwen3vl convert --help", "--layuot pai: no such option; use --layout",
          "--fast: no such option; see qwen3vl convert --help"]),
        (["convert", "--layout"], ["--layout: expected one argument; see qwen3vl convert --help"]),
        (["download", "paper"], ["KIND paper: must be one of model, dataset", "NAME: required", "--to: required"]),
        (["--bogus"], ["--bogus: no such option; see qwen3vl --help"]),
        (["demo", "x"], ["x: one word too many; see qwen3vl demo --help"]),
        (["recipe", "-x"], ["-x: no such option; see qwen3vl recipe --help"]),
        (["finetune", "--tp", "x", "--bogus", "3", "--train-data", "b"],
         ["--tp x: must be a whole number", "--bogus 3: no such option", "--load: required", "--train-data b: no such folder"]),
        (["convert", "a", "b", "--dtype", "fp4"], ["--dtype fp4: must be one of keep, bf16, fp16, fp32"]),
        (["finetune", "--load", "a", "--train-data", "b", "--lr", "-1"],
         ["--lr -1: must be at least 0; use 0", "--load a: no such folder", "--train-data b: no such folder"]),
        (["finetune", "--load", "a"], ["--train-data: required", "--load a: no such folder"]),
        (["finetune", "--load", "a", "--train-data", "b", "--detach", "--foreground"],
         ["--foreground: not allowed with argument --detach; see"]),
    ],
)  # fmt: skip
def test_a_wrong_request_is_a_line_for_each_problem_on_stderr_and_exit_code_2(words, lines, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [told.startswith(f"qwen3vl: {line}") for told, line in zip(err.splitlines(), lines, strict=True)] == [True] * len(lines)


def test_no_traceback_reaches_a_user():
    done = run("convert", "nowhere", "target")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "nowhere" in done.stderr


def test_debug_shows_the_traceback():
    done = run("--debug", "convert", "nowhere", "target")
    assert done.returncode != 0 and "Traceback" in done.stderr


def test_help_without_a_terminal_lists_every_command():
    done = run()
    assert done.returncode == 0
    for command in ("demo", "prepare", "convert", "plan", "recipe", "doctor", "finetune", "compare", "console", "runs"):
        assert f"\n    {command} " in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["finetun"], "did you mean finetune?"), (["runs", "shwo", "7"], "did you mean show?"),
        (["convert", "a", "b", "--dtype", "BF61"], "use bf16"), (["finetune", "--size", "8b"], "use 8B"),
        (["runs", "list", "--fliter", "x"], "use --filter"),
    ],
)  # fmt: skip
def test_what_was_probably_meant_is_named(words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_each_help_has_two_examples_that_parse_and_says_what_is_required(capsys):
    for command, lines in EXAMPLES.items():
        with pytest.raises(SystemExit):
            # as the installed command does
            main([*command.split(), "--help"], {name: getattr(commands, name) for name in CONSOLE_COMMANDS})
        shown = capsys.readouterr().out
        assert len(lines) == 2 and shown.endswith("examples:\n" + "".join(f"  {line}\n" for line in lines)), command
        for line in lines:
            words = shlex.split(line.partition(" > ")[0].removeprefix('eval "$(').removesuffix(')"'))[1:]
            if command.startswith("runs") or command in ("console", "notebook", "notify", "completion"):
                continue  # below
            given = vars(build_parser().parse_args(words))
            assert not read_problems(given), line
        if command == "prepare":
            assert "Folder to write the shards and their index to (required)" in " ".join(shown.split())
    for command in (one for one in EXAMPLES if one.startswith("runs ")):
        for line in EXAMPLES[command]:
            assert runs_parser().parse_args(shlex.split(line)[2:]).action is not None


def test_colours_are_for_terminals_and_no_color_turns_them_off(monkeypatch, capsys):
    main(["finetun"])
    assert "\x1b[" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    main(["finetun"])
    assert capsys.readouterr().err.startswith("\x1b[31mqwen3vl: \x1b[0mCOMMAND finetun")
    monkeypatch.setenv("NO_COLOR", "1")
    main(["finetun"])
    assert "\x1b[" not in capsys.readouterr().err


def test_the_store_may_be_named_before_the_command(tmp_path, capsys):
    assert main(["--runs", str(tmp_path / "mine"), "runs"]) == 0
    assert f"no runs in {tmp_path / 'mine'}" in capsys.readouterr().out
    assert main([f"--runs={tmp_path / 'mine'}"]) == 2
    assert "the console needs a terminal" in capsys.readouterr().err
