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
from qwen3vl_core.errors import RequestError, WorkError, error_lines
from qwen3vl_core.language import filled
from qwen3vl_core.layout.doctor import Check, render
from qwen3vl_core.options import COMMANDS, FinetuneOptions, missing_values, option_problems, options_of
from qwen3vl_core.options.planning import DoctorOptions, PlanOptions, RecipeOptions
from qwen3vl_core.problem_texts import TEXTS as TEXTS_OF_PROBLEMS
from qwen3vl_core.problems import Problem

ROOT = Path(__file__).parent.parent
SENTENCE = re.compile(r"[A-Za-z]{2,}[ ,]+[a-z]{2,}")
NO_WORDS = (
    "dialog keys", "dialog wide", "group first", "flag changed", "bold reverse", "qwen3vl finetune --plan ", " decides at the next start",
    "L 随时切换 · L changes it at any time", r"\b(error|traceback|exception|failed|killed|out of memory)\b",
    "A plan. Lines may be left out: the option then has its default.",
)  # fmt: skip
"""Styles, commands, the dialog that speaks both languages, a pattern, a comment of a file. What begins with $ is a style, too."""
LABEL = 12
"""Cells of a label in the key bar."""
LINE = 62
"""Cells of an explanation in the help, which at 80 columns has room for the key before it."""
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
WORDS = re.compile(r"[A-Za-z]{2}")
HAN = re.compile(r"[\u4e00-\u9fff]")
TEXTS = chinese.texts()
COMPUTER = {
    "{} -m pip install --no-build-isolation '{}'", "{} -m pip install --force-reinstall torch", "{} -m pip install '{}{}'",
    "{} -m pip install packaging", "python{} -m venv .venv && .venv/bin/pip install -e .", "torch.cuda.is_available() is False",
    "torch {} (a vendor's build, kept)", "Transformer Engine", "nvidia-smi: {}",
}  # fmt: skip
"""Texts of the doctor that are commands and names, or one of a list of these."""
UNTRANSLATED = {"TensorBoard", "GPU"}


@pytest.fixture
def chinese_spoken():
    language.use("zh")
    yield
    language.use("en")


def placeholders(text: str) -> set[str]:
    """Names, with their formats: `step {step:,}` -> {"step:,"}."""
    return {f"{name}{'!' + how if how else ''}:{spec}" for _, name, spec, how in string.Formatter().parse(text) if name is not None}


def literals(node: ast.expr | None) -> list[str]:
    """The texts that an expression may be: a literal, or either side of a condition."""
    if isinstance(node, ast.IfExp):
        return [*literals(node.body), *literals(node.orelse)]
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def said_by(call: ast.Call) -> list[ast.expr]:
    """The expressions of a call that people read: of `tr`, a notification, the keys of a dialog."""
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    if name in ("tr", "Label"):
        return call.args[:1]
    if name == "notify":
        return [*call.args[:1], *(keyword.value for keyword in call.keywords if keyword.arg == "title")]
    return [pair.elts[1] for pair in call.args if isinstance(pair, ast.Tuple)] if name == "Hints" else []


def spoken() -> dict[str, str]:
    """Each literal text that the code says to people by one of these -> its file."""
    found = {}
    for file in (*ROOT.glob("console/**/*.py"), *ROOT.glob("qwen3vl_core/**/*.py")):
        if "notebook" in file.parts or "chinese" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for said in said_by(node) if isinstance(node, ast.Call) else []:
                words = "".join(map(str, (part.value for part in getattr(said, "values", ()) if isinstance(part, ast.Constant))))
                assert not re.search(r"[a-z]{3}", words.replace("GPU", "")), f"{file.name}:{said.lineno}: an f-string is in no catalogue"
                found |= dict.fromkeys(filter(WORDS.search, literals(said)), file.name)
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


def test_every_problem_has_a_rule_and_an_advice_with_the_same_placeholders():
    assert set(chinese.PROBLEMS) == set(TEXTS_OF_PROBLEMS)
    for code, (rule, advice) in TEXTS_OF_PROBLEMS.items():
        for english, said in zip((rule, advice), chinese.PROBLEMS[code], strict=True):
            assert placeholders(said) == placeholders(english), code
            assert bool(english) == bool(said), f"{code}: one of two languages has no advice"
            words = re.sub(r"{[^}]*}", "", english)
            assert HAN.search(said) or not WORDS.search(words) or said == english.replace("; ", "；"), f"{code}: {said} is not Chinese"
            assert FLAG.findall(said) == FLAG.findall(english) or set(FLAG.findall(said)) == set(FLAG.findall(english)), code


def test_a_problem_is_chinese_for_people_and_english_in_records(chinese_spoken):
    options = FinetuneOptions(load="", train_data="data", tp=3, lr=-1.0, recompute_layers=2)
    shown = [problem.shown for problem in (*missing_values(options), *option_problems(options))]
    assert shown == [
        "--load：必填；训练的起点：torch_dist 检查点，或直接用 HF 目录",
        "--lr -1：至少为 0；用 0",
        "--recompute-layers 2：需要 --recompute full 或 offload；去掉它",
    ]
    problem = options_of(FinetuneOptions)[0].missing()
    assert str(problem) == problem.as_json()["text"] and problem.as_json()["text"].startswith("--load: required; checkpoint")
    assert error_lines(RequestError(problem), in_a_run=True)[0].endswith(str(problem))
    assert error_lines(RequestError(problem), in_a_run=False)[0].endswith(problem.shown)
    layout = Problem("tp-not-whole", "tp", 3, {"count": 32, "what": "attention heads", "tp": 3, "quotient": 32 / 3}, ({"tp": 2}, {"tp": 4}))
    assert layout.shown == "--tp 3：32 个注意力头 / 3 = 10.67 不是整数；用 2 或 4"


def test_every_text_of_the_doctor_is_chinese(chinese_spoken):
    source = ast.parse((ROOT / "qwen3vl_core" / "layout" / "doctor.py").read_text(encoding="utf-8"))
    bodies = [node for node in source.body if isinstance(node, ast.FunctionDef) and node.name not in ("render", "run", "ask_gpus")]
    inside = {id(part) for body in bodies for node in ast.walk(body) if isinstance(node, ast.JoinedStr) for part in node.values}
    docs = {id(body.body[0].value) for body in bodies if isinstance(body.body[0], ast.Expr)}
    texts = set()
    for node in (node for body in bodies for node in ast.walk(body)):
        if isinstance(node, ast.JoinedStr):
            texts.add("".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside | docs and " " in node.value.strip():
            texts.add(node.value)
    assert len(texts) > 30
    # a text may be a part of one: what is added behind it has a template with both
    known = " ".join(chinese.TEMPLATES)
    missing = [
        text for text in texts if text.removeprefix("{}").removesuffix("{}") not in known and WORDS.search(text) and text not in COMPUTER
    ]
    assert not missing, "add them to qwen3vl_core/chinese/doctor.py"
    for text, said in chinese.TEMPLATES.items():
        used = {int(name) for _, name, _, _ in string.Formatter().parse(said) if name is not None}
        assert used == set(range(text.count("{}"))), text
    fix = "free some, or choose another disk: export QWEN3VL_RUNS=DIR"
    about = filled("{}, {} GiB, compute {}, driver {}", "NVIDIA H20", "95.6", "9.0", "550")
    checks = [
        Check("disk", "warn", filled("{}: {} GiB free; {} is recommended", "/runs", "3.0", 100), fix),
        Check("GPU 0", "fail", filled("{}: older than Ampere (8.0), no bf16", about)),
    ]
    assert checks[1].as_json()["text"] == "NVIDIA H20, 95.6 GiB, compute 9.0, driver 550: older than Ampere (8.0), no bf16"
    report = render(checks)
    assert "磁盘" in report and "剩余 3.0 GiB；建议 100" in report and "腾出空间" in report and "计算能力 9.0" in report
    assert Check("disk", "ok", "text").as_json()["name"] == "disk"


def test_the_errors_of_the_console_of_files_and_downloads_are_chinese(chinese_spoken):
    texts = {}
    core = (ROOT / "qwen3vl_core" / name for name in ("files.py", "locations.py", "data/download.py"))
    for file in (*ROOT.glob("console/**/*.py"), *core):
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if "notebook" not in file.parts else ()
        for call in (node for node in nodes if isinstance(node, ast.Call)):
            name = getattr(call.func, "id", "")
            if name in ("RequestError", "WorkError", "filled") and call.args:
                words = "".join(str(part.value) for part in getattr(call.args[0], "values", ()) if isinstance(part, ast.Constant))
                assert name == "filled" or not WORDS.search(words.replace("run ", "")), (
                    f"{file.name}:{call.lineno}: an f-string is in no catalogue: use filled"
                )
                texts |= dict.fromkeys(filter(WORDS.search, literals(call.args[0])), file.name)
    assert len(texts) > 80
    assert not {text: file for text, file in texts.items() if text not in TEXTS}, "add them to qwen3vl_core/chinese/errors.py"
    for text, said in chinese.ERRORS.items():
        used = {int(name): (spec, how) for _, name, spec, how in string.Formatter().parse(said) if name is not None}
        made = [(spec, how) for _, name, spec, how in string.Formatter().parse(text) if name is not None]
        assert used == dict(enumerate(made)) and HAN.search(said), text
    error = WorkError(language.filled("run {}: was deleted already", "7"))
    assert (str(error), error.shown) == ("run 7: was deleted already", "运行 7：已经删除")
    error = RequestError(language.filled("--runs {}: is a file; choose a folder", "x"))
    assert (str(error), error.shown) == ("--runs x: is a file; choose a folder", "--runs x：是文件；请给目录")
    assert error_lines(error, in_a_run=True)[0].endswith("is a file; choose a folder")


def test_every_sentence_in_the_code_of_the_screens_is_known():
    """Also those that a table, a class or a variable holds until they are shown."""
    files = [file for folder in ("screens", "widgets") for file in (ROOT / "console" / folder).glob("*.py")]
    files += [ROOT / "console" / name for name in ("app.py", "console_base.py", "run_actions.py", "store_actions.py", "palette.py")]
    known = "\n".join([*TEXTS, *chinese.ERRORS, *NO_WORDS, *(text for action in ACTIONS for text in (action.label, action.tooltip))])
    for file in files:
        tree, silent = ast.parse(file.read_text(encoding="utf-8")), set()
        for node in ast.walk(tree):
            names = [getattr(target, "id", "") for target in getattr(node, "targets", [getattr(node, "target", None)])]
            if isinstance(node, ast.Expr) or any(name in ("CSS", "DEFAULT_CSS", "BINDINGS") for name in names):
                silent |= {id(part) for part in ast.walk(node) if not isinstance(node, ast.Expr) or isinstance(node.value, ast.Constant)}
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent else ""
            if SENTENCE.search(text) and not text.startswith("$"):
                assert text in known, f"{file.name}: {text}"


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
    assert said(QWEN3VL_LANG="zh", PYTHONIOENCODING="utf-8", QWEN3VL_RUN_DIR="run").split() == ["Runs", "False"], "a run's log is English"


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


def test_the_help_of_every_command_is_chinese_and_fits_80_columns(monkeypatch, chinese_spoken):
    monkeypatch.setenv("COLUMNS", "80")
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
