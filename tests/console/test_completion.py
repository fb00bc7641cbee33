"""Completion in real shells: commands, options, values, ids of runs."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from console.commands import completion
from qwen3vl_core.errors import RequestError
from qwen3vl_core.examples import EXAMPLES
from qwen3vl_core.options import COMMANDS, FinetuneOptions, options_of

CASES = [
    ("qwen3vl fi", ["finetune"]), ("qwen3vl finetune --precis", ["--precision"]), ("qwen3vl finetune --precision fp1", ["fp16"]),
    ("qwen3vl runs resu", ["resume"]), ("qwen3vl runs show 00", ["0003-beach", "0012-meadow"]),
    ("qwen3vl --runs {other} runs logs 0", ["0001-other"]), ("qwen3vl runs resume 0012-meadow --optimizer-o", ["--optimizer-offload"]),
    ("qwen3vl completion z", ["zsh"]), ("qwen3vl download mod", ["model"]),
]  # fmt: skip
BASH = """
source {script}
COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
_qwen3vl
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
# the parts of zsh's completion that need a line editor print what they are given
ZSH = """
compdef() {{ :; }}
compadd() {{ shift; print -l -- $@; }}
_files() {{ :; }}
_describe() {{ [[ $1 == -o ]] && shift; print -l -- ${{(P)2%%:*}}; }}
source {script}
words=({line}); CURRENT=$#words
_qwen3vl
"""


@pytest.fixture
def runs(tmp_path):
    """A store in the environment, and another one."""
    for name in ("store/0003-beach", "store/0012-meadow", "store/.0013-claimed", "other/0001-other"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_what_the_parsers_know_and_the_runs_that_exist(runs, capsys, shell):
    assert completion([shell]) == 0
    script = runs / "script"
    script.write_text(capsys.readouterr().out)
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    environment = os.environ | {"QWEN3VL_RUNS": str(runs / "store"), "HOME": str(runs)}
    for line, expected in CASES:
        line = line.format(other=runs / "other")
        program = {"bash": BASH, "zsh": ZSH, "fish": "source {script}\ncomplete -C '{line}'\n"}[shell].format(script=script, line=line)
        done = subprocess.run([shell, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False)
        begin = line.split()[-1]
        found = [word.partition("\t")[0] for word in done.stdout.splitlines() if word.startswith(begin)]
        assert found == expected, f"{line}\n{done.stdout}\n{done.stderr}"


def test_every_command_and_option_is_in_the_script_and_another_shell_is_refused(capsys):
    completion(["bash"])
    script = capsys.readouterr().out
    assert all(f"'{name}')" in script or f"{name})" in script for name in COMMANDS)
    assert all(o.flag in script for o in options_of(FinetuneOptions))
    assert all(command in script for command in EXAMPLES)
    with pytest.raises(RequestError, match="did you mean zsh"):
        completion(["zhs"])
