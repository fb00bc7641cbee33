"""Everything that the documentation refers to exists: paths, names in files, modules, links, commands."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from qwen3vl_core.command_line import build_parser
from qwen3vl_core.options import COMMANDS, options_of
from tests.test_import_graph import import_graph, modules

ROOT = Path(__file__).parent.parent
# CHANGELOG.md names removed things
PAGES = [*(ROOT / name for name in ("README.md", "README.zh.md", "CONTRIBUTING.md", "SECURITY.md")), *sorted((ROOT / "docs").glob("*.md"))]
TOP = ("qwen3vl_core", "console", "tests", "tools", "benchmarks", "docs", "notebooks", ".ci")
PACKAGES = ("qwen3vl_core", "console")
# a path of the repository from its top, or a Python file somewhere in a package; [] as in a test's name is not part of it
PATH = re.compile(rf"(?<![\w/.~$-])(?:(?:{'|'.join(map(re.escape, TOP))})/[\w./*-]*|(?:[\w-]+/)*\w+\.py)(?![\w/])")
MODULE = re.compile(rf"(?<![\w/.-])(?:{'|'.join(PACKAGES)})(?:\.\w+)+")
NAMED = re.compile(r"`([A-Za-z_]\w*(?:\.\w+)?)`(?: and `([A-Za-z_]\w*(?:\.\w+)?)`)?\s+in\s+`([\w./-]+\.py)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#([^)\s]+))?\)")
MODULE_ROW = re.compile(r"^\| (`[^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")


def files_of(path: str) -> list[Path]:
    """Files that a path in a page refers to: relative to the repository, else to one of the packages."""
    path = path.rstrip("./")
    bases = [ROOT] if path.split("/")[0] in TOP else [ROOT / package for package in PACKAGES] + [ROOT]
    found = [file for base in bases for file in (base.glob(path) if "*" in path else [base / path]) if file.exists()]
    if not found and "/" not in path:
        found = [file for top in (*PACKAGES, "tests", "tools", "benchmarks") for file in (ROOT / top).rglob(path)]
    return found


@cache
def names_in(file: Path) -> set[str]:
    """Functions, classes, their members, and variables of a module."""
    names = set()

    def collect(body: list[ast.stmt], prefix: str = "") -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    collect(node.body, f"{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    each = target.elts if isinstance(target, ast.Tuple) else [target]
                    names.update(prefix + one.id for one in each if isinstance(one, ast.Name))

    collect(ast.parse(file.read_text()).body)
    return names


def problems(text: str, folder: Path) -> list[str]:
    """Broken references of a page in `folder`."""
    # a cell's paths may be relative to the folder of its row: another test looks at those
    outside = MODULE_ROW.sub("", text)
    wrong = [f"{path}: no such file" for path in sorted(set(PATH.findall(outside))) if not files_of(path)]
    for first, second, path in NAMED.findall(text):
        known = set().union(*map(names_in, files_of(path))) if files_of(path) else set()
        wrong += [f"{name}: not in {path}" for name in (first, second) if name and name not in known]
    for module in sorted(set(MODULE.findall(text))):
        # the last part may be a name in the module
        parts = module.split(".")
        file = next((ROOT.joinpath(*parts[:n]) for n in range(len(parts), 0, -1) if _is_module(ROOT.joinpath(*parts[:n]))), None)
        rest = parts[len(file.relative_to(ROOT).parts) :] if file else parts
        source = (file.with_suffix(".py") if file.with_suffix(".py").exists() else file / "__init__.py") if file else None
        if source is None or len(rest) > 1 or (rest and rest[0] not in source.read_text()):
            wrong.append(f"{module}: no such module")
    for target, anchor in LINK.findall(text):
        if target.startswith(("https://", "http://")):
            continue
        file = folder / target
        if not file.exists():
            wrong.append(f"({target}): a broken link")
        elif anchor and anchor not in anchors(file.read_text()):
            wrong.append(f"({target}#{anchor}): no such heading")
    return wrong


def _is_module(path: Path) -> bool:
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub generates them."""
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_paths_of_pages_exist(page):
    assert not problems(page.read_text(), page.parent)


def test_broken_paths_names_modules_and_links_are_detected():
    text = "`console/gone.py`, `TABLE` in `qwen3vl_core/checkpoint/name_map.py`, `GONE` in `qwen3vl_core/sizes.py`, `console.gone.Gone`, "
    text += "[a](docs/model.md), [b](docs/gone.md), [c](README.md#gone), `qwen3vl_core.load`, `tests/no_such_*.py`, `no_such_file.py`"
    found = problems(text, ROOT)
    assert [line.split(":")[0] for line in found] == [
        "console/gone.py", "docs/gone.md", "no_such_file.py", "tests/no_such_*.py", "GONE", "console.gone.Gone", "(docs/gone.md)",
        "(README.md#gone)",
    ]  # fmt: skip


def commands(text: str) -> list[list[str]]:
    """`qwen3vl …` lines of a page's shell blocks."""
    lines = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("qwen3vl")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_commands_of_a_page_parse(page):
    for words in commands(page.read_text()):
        if words and words[0] not in ("console", "runs", "notebook"):
            build_parser().parse_args(words)


def test_the_chinese_readme_has_the_commands_of_the_english_one():
    english, chinese = (commands((ROOT / name).read_text()) for name in ("README.md", "README.zh.md"))
    assert chinese == english


def test_modules_of_the_architecture_page_are_in_their_folders():
    rows = MODULE_ROW.findall((ROOT / "docs" / "architecture.md").read_text())
    assert len(rows) > 10
    for folders, *cells in rows:
        named = re.findall(r"`([\w/]+(?:\.py|/))`", " ".join(cells))
        for path in named:
            assert any((ROOT / folder / path).exists() for folder in re.findall(r"`([\w/]+)`", folders)), f"{path} is not in {folders}"


CORE = ("options", "layout", "structure", "data", "model", "checkpoint", "training", "caption", "demo")
FOLDERS = {
    **{f"qwen3vl_core.{name}": f"`{name}`" for name in CORE},
    **{f"console.{name}": f"`console/{name}`" for name in ("runs", "curves", "readers", "screens", "widgets", "notebook")},
    "console": "console files", "qwen3vl_core": "the command line",
}  # fmt: skip
COMMAND_LINE = {"qwen3vl_core.cli", "qwen3vl_core.command_line", "qwen3vl_core.entry_points"}
"""Of the modules at the top of the core; the others import none of the folders, so that any folder may import them."""


def imports_of_folders() -> dict[str, set[str]]:
    """Folder -> folders that it imports, as the architecture's table writes them."""

    def folder(module: str) -> str:
        return FOLDERS[next(name for name in (".".join(module.split(".")[:2]), module.split(".")[0]) if name in FOLDERS)]

    found: dict[str, set[str]] = {name: set() for name in FOLDERS.values()}
    for module, imported in import_graph(modules(ROOT)).items():
        # the names of what `python -m` runs are no imports
        wanted = {other for other in imported if FOLDERS["qwen3vl_core"] != folder(other) or other in COMMAND_LINE} - {
            "qwen3vl_core.training",
            "qwen3vl_core.training.torchrun",
        }
        assert module in COMMAND_LINE or module == "qwen3vl_core" or folder(module) != FOLDERS["qwen3vl_core"] or not wanted, module
        found[folder(module)] |= {folder(other) for other in wanted} - {folder(module)}
    return found


def test_the_import_table_of_the_architecture_page_is_correct():
    text = (ROOT / "docs" / "architecture.md").read_text().split("## Who imports whom")[1].split("\n## ")[0]
    rows = {folder.strip(): cell for folder, cell in re.findall(r"^\| ([^|]+) \| ([^|]*) \|", text, re.MULTILINE)}
    for folder, imported in imports_of_folders().items():
        said = set(filter(None, map(str.strip, rows[folder].split(","))))
        assert said == imported, f"docs/architecture.md, row {folder}: it imports {', '.join(sorted(imported))}"


def test_the_index_names_every_page_and_the_readme_every_folder():
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, f"docs/README.md does not lead to {page.name}"
    readme = (ROOT / "README.md").read_text()
    for package in PACKAGES:
        for folder in (ROOT / package).iterdir():
            if (folder / "__init__.py").exists() and package == "qwen3vl_core":
                assert f"`{package}/{folder.name}`" in readme, f"README.md does not say what {package}/{folder.name} holds"
    for folder in ("benchmarks", "console", "notebooks", "tests", "tools", "docs"):
        assert f"`{folder}`" in readme, f"README.md does not say what {folder} holds"


def test_readme_names_options_that_exist():
    flags = {o.flag for cls in COMMANDS.values() for o in options_of(cls)}
    known = flags | set(re.findall(r"--[a-z][a-z0-9-]+", build_parser().format_help()))
    own = {
        "--read-data",
        "--help",
        "--json",
        "--web",
        "--headless",
        "--follow",
        "--suggest",
        "--html",
        "--gpus",
        "--memory",
        "--version",
        "--plan",
        "--runs",
    }
    text = (ROOT / "README.md").read_text().split("## The loop on your own data")[1]
    assert not {flag for flag in FLAG.findall(text) if flag not in known | own}
