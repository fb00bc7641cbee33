"""Notebook widgets and data frames on the same runs as the console.

    from console.notebook import Launcher, RunMonitor, CompareCaptions, RunsTable, DatasetPreview, runs, metrics

or, in cells:

    %load_ext console.notebook
    %qwen3vl monitor 7

The names in `__all__` are the public interface; the modules behind them may change. Names are imported lazily: the data frames need
only pandas, and `qwen3vl notebook` needs neither pandas nor ipywidgets.
"""

from __future__ import annotations

import importlib
from typing import Any

from qwen3vl_core.errors import RequestError

_MODULES = {
    "Launcher": "launcher",
    "RunMonitor": "monitor",
    "CompareCaptions": "compare",
    "RunsTable": "table",
    "DatasetPreview": "preview",
    "runs": "data_frames",
    "metrics": "data_frames",
    "captions": "data_frames",
    "scores": "data_frames",
    "events": "data_frames",
    "open_store": "stores",
    "wait": "waiting",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("ipywidgets", "plotly", "anywidget", "pandas", "IPython"):
            raise RequestError(f"{name}: {error.name} is not installed; pip install 'qwen3vl-console[notebook]'") from None
        raise
    return getattr(module, name)


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext console.notebook`: the magics `%qwen3vl` and `%%qwen3vl`."""
    importlib.import_module(f"{__name__}.magics").register(shell)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
