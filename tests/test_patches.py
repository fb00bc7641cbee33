"""What code replaces in a module that it imports: Megatron and torch are patched in one folder, and every other case is listed here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.patch_finder import FUNCTIONS, below, patches

ROOT = Path(__file__).parent.parent
FOLDERS = ("qwen3vl_core", "console", "benchmarks", "tools")

# file or folder -> what it may replace: a name and all below it
ALLOWED: dict[str, tuple[str, ...]] = {
    "qwen3vl_core/model/patches": ("torch", "megatron", "sys.modules", "module", "optimizer._copy_main_params_to_model_params"),
    # argparse's actions store their results there
    "qwen3vl_core/options/declare.py": ("namespace",),
    "qwen3vl_core/argument_parser.py": ("given",),
    # torchrun has no option for the address that its store listens on
    "qwen3vl_core/training/torchrun.py": ("torch.distributed.elastic.rendezvous.static_tcp_rendezvous.TCPStore",),
    # zipfile has no other way to read an entry whose checksum was not stored
    "qwen3vl_core/checkpoint/saved_arguments.py": ("stream._expected_crc",),
    # asyncio is imported without ssl, and textual_image without a terminal; both are put back
    "console/commands.py": ("sys.modules['ssl']",),
    "console/terminal.py": ("sys.__stdout__",),
    # saves without what the package patches, to compare
    "benchmarks/save.py": ("megatron.core.dist_checkpointing.strategies.filesystem_async.open", "unittest.mock.patch.object"),
    # writes with older cores than ours, in a process of its own
    "tools/foreign_checkpoints.py": (
        "numpy.product", "torch.cuda", "megatron.core.dist_checkpointing.strategies.filesystem_async._write_item",
    ),
}  # fmt: skip


def _allowed(file: str) -> tuple[str, ...]:
    return tuple(name for where, names in ALLOWED.items() if file == where or file.startswith(f"{where}/") for name in names)


def test_megatron_and_torch_are_patched_in_one_folder_and_nothing_else_without_being_listed():
    used = set()
    for file in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        name = str(file.relative_to(ROOT))
        allowed = _allowed(name)
        for line, what in patches(file.read_text()):
            assert below(what, allowed), f"{name}:{line} replaces {what}"
            used |= {(where, root) for where in ALLOWED if name.startswith(where) for root in ALLOWED[where] if below(what, (root,))}
    assert used == {(where, name) for where, names in ALLOWED.items() for name in names}, "what is listed is no longer replaced"


def test_every_patch_states_its_upstream_reason_and_end_version():
    files = sorted((ROOT / "qwen3vl_core/model/patches").glob("*.py"))
    checked = 0
    for file in files:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS[:2]) and (node.name.startswith("patch_") or node.name == "light_imports"):
                text = (ast.get_docstring(node) or "") + (ast.get_docstring(tree) or "")
                assert "Upstream: " in text and "Unnecessary from: " in text, f"{file.name}: {node.name}"
                checked += 1
    assert checked >= 9


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import torch\ntorch.compile = f", "torch.compile"),
        ("import torch\ntorch.Tensor.to: object = f", "torch.Tensor.to"),
        ("import torch\ntorch.a, torch.b = f, g", "torch.a"),
        ("import megatron.core.x as y\ny.f = g", "megatron.core.x.f"),
        ("from megatron.core import z\nz.f = g", "megatron.core.z.f"),
        ("from megatron.core import z as w\ndef install():\n    w.f = g", "megatron.core.z.f"),
        ("def install():\n    from megatron.core import z\n    del z.f", "megatron.core.z.f"),
        ("from megatron.core.layers import Layer\nLayer.forward = g", "megatron.core.layers.Layer.forward"),
        ("from megatron.core import z\nclass A:\n    def m(self):\n        z.f += g", "megatron.core.z.f"),
        ("import torch\ncuda = torch.cuda\ncuda.Stream = g", "torch.cuda.Stream"),
        ("import torch\nfor m in (torch.cuda, torch.cuda.random):\n    m.f = g", "torch.cuda.random.f"),
        ("import torch\na = b = torch\nb.f = g", "torch.f"),
        ("import torch\nsetattr(torch.cuda, 'f', g)", "torch.cuda.f"),
        ("import torch as t\nput = setattr\nput(t.cuda, name, g)", "torch.cuda.?"),
        ("from torch import nn\ntype.__setattr__(nn.Module, 'cuda', g)", "torch.nn.Module.cuda"),
        ("import torch\ngetattr(torch, 'cuda').f = g", "torch.cuda.f"),
        ("import importlib\nimportlib.import_module('torch.cuda').f = g", "torch.cuda.f"),
        ("import sys\nsys.modules['torch'].f = g", "torch.f"),
        ("import sys\nsys.modules['wandb'] = None", "sys.modules['wandb']"),
        ("from sys import modules\nmodules['wandb'] = None", "sys.modules['wandb']"),
        ("import sys\nsys.modules |= absent", "sys.modules"),
        ("import sys\nsys.modules.update(wandb=None)", "sys.modules"),
        ("import torch\nvars(torch)['f'] = g", "torch.__dict__['f']"),
        ("import torch\ntorch.__dict__.update(f=g)", "torch.__dict__"),
        ("from megatron.core.optimizer import TABLE\nTABLE['adam'] = g", "megatron.core.optimizer.TABLE['adam']"),
        ("from unittest.mock import patch\n@patch('torch.compile', g)\ndef f(): ...", "unittest.mock.patch"),
        ("from unittest import mock\nwith mock.patch.object(m, 'f'): ...", "unittest.mock.patch.object"),
        ("import pytest\npytest.MonkeyPatch().context()", "pytest.MonkeyPatch"),
        ("def f(monkeypatch, m):\n    monkeypatch.setattr(m, 'f', g)", "monkeypatch.setattr"),
        ("def f(optimizer):\n    setattr(optimizer, name, g)", "optimizer.?"),
        ("def f(optimizer):\n    optimizer._copy = g", "optimizer._copy"),
        ("from console import forms\nforms.KINDS = ()", "console.forms.KINDS"),
        ("from . import forms\nforms.KINDS = ()", "..forms.KINDS"),
    ],
)  # fmt: skip
def test_a_patch_is_detected_under_any_name(code, what):
    assert what in [name for _, name in patches(code)]


@pytest.mark.parametrize(
    "code",
    [
        "import torch\nx = torch.zeros(3)\nx.requires_grad = True\nx[0] = 1",
        "from megatron.core import optimizer\ndef step(optimizer):\n    optimizer.lr = 1",
        "from m import Options\ndef f():\n    Options = read()\n    Options.lr = 1",
        "class A:\n    def __init__(self):\n        self._x = 1\n        self.y.z = 2\n        setattr(self, 'a', 1)",
        "import os\nos.environ['A'] = 'b'\nos.environ |= {}",
        "import torch\ndtype = torch.float32\nx = dtype == 1",
        "def f(model):\n    model.__class__ = g(model)",
        "text = {}\ntext.update(a=1)\ntext['a'] = 2",
    ],
)
def test_assignments_to_own_objects_are_not_patches(code):
    assert patches(code) == []
