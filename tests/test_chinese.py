"""The Chinese catalogue is complete, keeps the placeholders, and fits a terminal of 80 columns."""

from __future__ import annotations

import argparse
import ast
import os
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from console.actions import ACTIONS, SCREENS
from console.command_parsers import console_parser, notebook_parser
from console.runs_command import parser as parser_of_runs
from qwen3vl_core import chinese, language
from qwen3vl_core.cells import width, wrapped
from qwen3vl_core.command_line import build_parser
from qwen3vl_core.options import COMMANDS, options_of
from qwen3vl_core.options.planning import DoctorOptions, PlanOptions, RecipeOptions

ROOT = Path(__file__).parent.parent
LABEL = 12
"""Cells of a label in the key bar."""
LINE = 62
"""Cells of an explanation in the help, which at 80 columns has room for the key before it."""
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
HAN = re.compile(r"[\u4e00-\u9fff]")
TEXTS = chinese.texts()
UNTRANSLATED = {"TensorBoard", "GPU"}


def placeholders(text: str) -> set[str]:
    """Names, with their formats: `step {step:,}` -> {"step:,"}."""
    return {f"{name}{'!' + how if how else ''}:{spec}" for _, name, spec, how in string.Formatter().parse(text) if name is not None}


def spoken() -> dict[str, str]:
    """Each literal text that the code gives to `tr` -> its file."""
    found = {}
    for file in (*ROOT.glob("console/**/*.py"), *ROOT.glob("qwen3vl_core/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "tr" and node.args:
                texts = [node.args[0].body, node.args[0].orelse] if isinstance(node.args[0], ast.IfExp) else [node.args[0]]
                for text in texts:
                    assert not isinstance(text, ast.JoinedStr), f"{file.name}:{node.lineno}: tr of an f-string finds nothing"
                    if isinstance(text, ast.Constant):
                        found[text.value] = file.name
    return found


def test_every_text_that_is_shown_by_tr_is_in_the_catalogue_with_its_placeholders():
    said = spoken()
    assert len(said) > 5
    missing = {text: file for text, file in said.items() if text not in TEXTS}
    assert not missing, "texts without Chinese: add them to qwen3vl_core/chinese/screens.py"
    for text, chinese_text in TEXTS.items():
        if text in said:
            assert placeholders(chinese_text) == placeholders(text), text


def test_every_action_and_title_has_short_chinese_words():
    assert set(chinese.ACTIONS) == {action.id for action in ACTIONS}
    for name, (label, tooltip) in chinese.ACTIONS.items():
        assert (HAN.search(label) or label in UNTRANSLATED) and HAN.search(tooltip), name
        assert cell_len(label) <= LABEL, f"{name}: {label} takes {cell_len(label)} cells"
        assert cell_len(tooltip) <= LINE, f"{name}: {tooltip} takes {cell_len(tooltip)} cells"
    assert all(HAN.search(TEXTS[title]) for title in SCREENS.values())


def test_a_text_that_the_catalogue_lacks_or_whose_placeholders_differ_is_noticed():
    assert placeholders("{a} of {b:g}") == {"a:", "b:g"} != placeholders("{a}/{b}")
    assert language.tr("no such text {count}", count=1) == "no such text 1"


@pytest.mark.parametrize(
    ("environment", "setting", "chosen", "expected", "asked"),
    [
        ({"QWEN3VL_LANG": "zh"}, "", "", "zh", False),
        ({"QWEN3VL_LANG": "en", "LANG": "zh_CN.UTF-8"}, "zh", "zh", "en", False),
        ({"LANG": "zh_CN.UTF-8"}, "", "", "zh", True),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "de_DE.UTF-8"}, "", "", "en", False),
        ({"LANG": "C.UTF-8"}, "", "", "en", True),
        ({}, "", "zh", "zh", False),
        ({}, "en", "zh", "en", False),
        ({"LANG": "zh_CN.UTF-8"}, "en", "", "en", False),
    ],
)
def test_the_variable_decides_then_the_settings_then_the_choice_then_the_locale(
    tmp_path, monkeypatch, environment, setting, chosen, expected, asked
):
    settings = tmp_path / "settings.yaml"
    monkeypatch.setenv("QWEN3VL_SETTINGS", str(settings))
    for name in ("QWEN3VL_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if setting:
        settings.write_text(f"theme: nord\nlanguage: {setting}\n")
    if chosen:
        language.remember(chosen)
    monkeypatch.setattr(language, "_language", "")
    monkeypatch.setattr(language, "_texts", {})
    assert (language.language(), language.is_unclear()) == (expected, asked)


def test_english_loads_no_catalogue_and_an_output_without_chinese_stays_english():
    program = "import sys; from qwen3vl_core.language import tr; print(tr('Runs'), 'qwen3vl_core.chinese' in sys.modules)"

    def said(**environment: str) -> str:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env=os.environ | environment, cwd=ROOT, capture_output=True, check=True, timeout=60).stdout.decode()

    assert said(QWEN3VL_LANG="en").split() == ["Runs", "False"]
    assert said(QWEN3VL_LANG="zh", PYTHONIOENCODING="utf-8").split() == ["运行", "True"]
    assert said(QWEN3VL_LANG="zh", PYTHONIOENCODING="latin-1").split() == ["Runs", "False"]


# options and the command line


def test_every_option_has_a_word_a_help_and_the_rest_of_its_line():
    classes = (*COMMANDS.values(), PlanOptions, RecipeOptions, DoctorOptions)
    for option in (option for cls in classes for option in options_of(cls)):
        bare = next((option.help.removeprefix(before) for before in chinese.PREFIXES if option.help.startswith(before)), option.help)
        assert bare in chinese.OPTIONS, f"{option.flag}: add it to qwen3vl_core/chinese/options.py"
        word, text = chinese.OPTIONS[bare]
        assert HAN.search(text) and word and cell_len(word) <= LABEL, f"{option.flag} {word}"
        assert set(FLAG.findall(text)) == set(FLAG.findall(bare)), f"{option.flag}: other flags in Chinese"
        assert option.group in TEXTS and (not option.unit or option.unit in TEXTS), option.flag


def test_the_help_of_every_command_is_chinese_and_fits_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    language.use("zh")
    try:
        parser = build_parser()
        parsers = {"qwen3vl": parser, "console": console_parser(), "notebook": notebook_parser(), "runs": parser_of_runs()}
        for name, above in (("", parser), ("runs", parsers["runs"])):
            for action in above._actions:
                if isinstance(action, argparse._SubParsersAction):
                    parsers = {f"{name} {word}".strip(): sub for word, sub in action.choices.items()} | parsers
        assert len(parsers) > 20
        for name, parser in parsers.items():
            lines = parser.format_help().splitlines()
            wide = [line for line in lines if cell_len(line) > 80 and HAN.search(line)]
            assert not wide, f"{name}: wider than 80 columns"
            for action in parser._actions:
                said = language.tr(action.help) if action.help and action.help != argparse.SUPPRESS else "中"
                assert HAN.search(said), f"{name} {action.dest}: {action.help}: add it to qwen3vl_core/chinese/commands.py"
            about = language.tr(" ".join((parser.description or "中").split()))
            assert HAN.search(about), f"{name}: {about}"
    finally:
        language.use("en")


@pytest.mark.parametrize(
    ("text", "cells", "lines"),
    [
        ("a word and another", 10, ["a word and", "another"]),
        ("学习率线性预热的步数", 8, ["学习率线", "性预热的", "步数"]),
        ("保存检查点。再停止", 10, ["保存检查", "点。再停止"]),
        ("默认 1e-05 或更小", 10, ["默认 1e-05", "或更小"]),
    ],
)
def test_chinese_lines_break_between_characters_and_not_before_a_full_stop(text, cells, lines):
    assert wrapped(text, cells) == lines
    assert all(width(line) <= cells for line in lines)
