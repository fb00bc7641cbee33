"""Qwen3-VL on Megatron-Core: model, conversion, data, training and captions.

The public interface is the `qwen3vl` command with its options, exit codes and `--json`, and the names in `__all__`. Anything else may
change between versions; `CONTRIBUTING.md` in the repository says what is where.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen3vl_core.errors import RequestError, WorkError

if TYPE_CHECKING:
    from qwen3vl_core.checkpoint.load import load

__version__ = "0.1.0"
__all__ = ["RequestError", "WorkError", "__version__", "load"]


def __getattr__(name: str) -> object:
    # imported lazily: `qwen3vl --help` and the console import this package and must not wait for torch
    if name == "load":
        from qwen3vl_core.checkpoint.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
