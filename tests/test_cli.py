"""The `qwen3vl` command as a user types it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qwen3vl_core.cli import main


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
