"""Qwen3-VL on Megatron-Core: model, conversion, data, training and captions. `load(path)` gives a model to call."""

__version__ = "0.1.0"


def __getattr__(name: str):
    # imported when asked for: `qwen3vl --help` and the console import this package and must not wait for torch
    if name == "load":
        from qwen3vl_core.checkpoint.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
