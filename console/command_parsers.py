"""The parsers of `qwen3vl console` and `qwen3vl notebook`; what these commands do is in `commands.py`."""

from __future__ import annotations

import importlib
from pathlib import Path

from qwen3vl_core.argument_parser import Parser, port
from qwen3vl_core.language import tr
from qwen3vl_core.locations import STORE_HELP


def console_parser() -> Parser:
    """The parser of `qwen3vl console`."""
    parser = Parser(prog="qwen3vl console", description="The terminal console.", allow_abbrev=False)
    parser.add_argument("--runs", type=Path, default=None, metavar="DIR", help=STORE_HELP)
    parser.add_argument(
        "--workspace", type=Path, default=None, metavar="DIR", help="folder with models and data to offer, such as the demo's"
    )
    parser.add_argument("--web", action="store_true", help="in a browser tab, on this machine only; the link holds a token")
    parser.add_argument("--port", type=port, default=None, metavar="N", help="port of --web (default 8866, or the next free one)")
    parser.add_argument("--no-browser", action="store_true", help="with --web: only print the link")
    parser.add_argument(
        "--behind-proxy", default=None, metavar="URL", help="with --web: where a gateway serves this port, {port} for its number, such as "
        "https://gateway.example/me/proxy/{port}/; on DSW it is known",
    )  # fmt: skip
    return parser


def notebook_parser() -> Parser:
    """The parser of `qwen3vl notebook`."""
    lab = importlib.import_module("console.notebook.jupyterlab")
    parser = Parser(
        prog="qwen3vl notebook",
        description="Copies of the example notebooks: in the JupyterLab whose terminal or cell this is, else in one that is started and "
        "protected by its token. Copies that you have not changed are refreshed after an upgrade.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=None,
        metavar="DIR",
        help=tr(
            "folder of the copies (default {folder}; in an open JupyterLab {inside} in its root)",
            folder=lab.DEFAULT_FOLDER,
            inside=lab.inside_jupyter.FOLDER,
        ),
    )
    parser.add_argument("--copy", action="store_true", help="copy, and register the kernel, without starting JupyterLab")
    parser.add_argument("--runs", type=Path, default=None, metavar="DIR", help=STORE_HELP)
    parser.add_argument(
        "--port",
        type=port,
        default=None,
        metavar="N",
        help="port to listen on (default 8888, or the next free one); starts a JupyterLab also where one is open",
    )
    parser.add_argument(
        "--base-url",
        default=None,
        metavar="PATH",
        help="path below which a gateway serves the JupyterLab that is started, such as /me/lab/",
    )
    parser.add_argument(
        "--ip", default="127.0.0.1", metavar="ADDRESS", help="address to listen on; 0.0.0.0: every network (default 127.0.0.1)"
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the link")
    return parser
