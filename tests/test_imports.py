"""Who may import whom, and what the first frame must not wait for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.import_statements import import_statements

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "megatron")
CORE = tuple(f"qwen3vl_core.{folder}" for folder in ("model", "training", "data", "checkpoint"))
INTERFACE = ("textual", "ipywidgets", "console.screens", "console.app")

# folder or file -> what it must not import, at its top or in a function: a module and all below it
FORBIDDEN = {
    "qwen3vl_core": ("console", "textual", "ipywidgets"),
    "qwen3vl_core/options": (*HEAVY, *CORE),
    "qwen3vl_core/layout": (*HEAVY, *CORE),
    "qwen3vl_core/sizes.py": (*HEAVY, "qwen3vl_core.model"),
    "qwen3vl_core/model": ("qwen3vl_core.training", "qwen3vl_core.data", "qwen3vl_core.caption", "qwen3vl_core.demo"),
    "qwen3vl_core/checkpoint": ("qwen3vl_core.data", "qwen3vl_core.caption", "qwen3vl_core.demo", "qwen3vl_core.training"),
    "qwen3vl_core/data": ("qwen3vl_core.model", "qwen3vl_core.checkpoint", "qwen3vl_core.training", "qwen3vl_core.demo"),
    "console": (*HEAVY, *CORE),
    "console/**/*.py": ("textual",),
    "console/readers": (*INTERFACE, "console.widgets"),
    "console/curves": (*INTERFACE, "console.widgets", "console.notebook", "plotly"),
    "console/runs": (*INTERFACE, "console.widgets"),
    "console/forms.py": (*INTERFACE, "console.widgets", "console.notebook"),
    "console/notebook": ("textual", "console.screens", "console.widgets", "console.app"),
}
# row of the table -> beginnings of the files that it is not for
EXCEPT = {
    "console/**/*.py": (
        "console/screens/", "console/widgets/", "console/app.py", "console/console_base.py", "console/run_actions.py",
        "console/store_actions.py", "console/colours.py", "console/actions.py", "console/messages.py", "console/palette.py",
        "console/terminal.py", "console/web.py", "console/web_driver.py",
    ),
}  # fmt: skip
# file -> what it may import all the same: these read datasets and import no torch, as a test below holds
ALLOWED = {"console/notebook/shards.py": ("qwen3vl_core.data.shards", "qwen3vl_core.data.errors", "qwen3vl_core.data.pictures")}
# a string that is a module's name, for `import_module`; what `python -m` runs in another process is no import
MODULE = re.compile(r"(qwen3vl_core|console|megatron|textual)(\.\w+)+")
COMMANDS = ("qwen3vl_core.training",)


def imports(file: Path) -> set[str]:
    """Every module that a file imports, also inside functions, or names in a string."""
    found = set()
    for module, names, is_string in import_statements(file):
        if not is_string:
            found |= {module, *(f"{module}.{name}" for name in names)}
        elif MODULE.fullmatch(module) and module not in COMMANDS:
            found.add(module)
    return found


def below(module: str, other: str) -> bool:
    """Whether a module is the other one, or inside it."""
    return module == other or module.startswith(other + ".")


@pytest.mark.parametrize("where", FORBIDDEN)
def test_layers_import_downwards_only(where):
    files = ROOT.glob(f"{where}/**/*.py" if (ROOT / where).is_dir() else where)
    files = [file for file in files if not str(file.relative_to(ROOT)).startswith(EXCEPT.get(where, ()))]
    assert files
    for file in files:
        allowed = ALLOWED.get(str(file.relative_to(ROOT)), ())
        for module in imports(file):
            wrong = any(below(module, f) for f in FORBIDDEN[where]) and not any(below(module, a) for a in allowed)
            assert not wrong, f"{file.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize(
    "code",
    [
        "from qwen3vl_core.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass",
        "import console.app",
        "import console.commands, console.runs.store, console.runs.launch",
        "import qwen3vl_core.options, qwen3vl_core.sizes, qwen3vl_core.layout.torchrun_command",
        "import console.notebook.shards",
    ],
    ids=["help", "console", "runs", "options", "samples"],
)
def test_the_first_frame_waits_for_no_heavy_import(code):
    program = f"import sys\n{code}\nprint([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().endswith("[]"), done.stderr


LATER = (
    "numpy", "PIL", "ssl", "yaml", "json", "ctypes", "webbrowser", "qwen3vl_core.addresses", "qwen3vl_core.files", "qwen3vl_core.options",
    "console.settings", "console.runs.launch", "console.runs.state", "console.runs.store", "console.readers.store_watcher",
    "console.screens.dialog", "console.screens.monitor", "qwen3vl_core.chinese",
)  # fmt: skip
"""What is imported when it is first used, which is after the first frame."""


def test_the_first_screen_imports_little_and_later_imports_work():
    program = f"""
import sys
from console.commands import _without_tls
_without_tls()
import console.app, console.screens.runs
assert not [m for m in {LATER!r} if m in sys.modules], [m for m in {LATER!r} if m in sys.modules]
for module in {LATER!r}:
    __import__(module)
import ssl, urllib.request
assert ssl.create_default_context().verify_mode == ssl.CERT_REQUIRED and hasattr(urllib.request, "HTTPSHandler")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
