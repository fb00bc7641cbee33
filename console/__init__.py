"""The console of Qwen3-VL runs: run store, supervisor, terminal screens, notebook widgets.

The public interface is `qwen3vl console`, `qwen3vl runs` and `qwen3vl notebook` with their options, exit codes and `--json`, the files
of a run's folder, and the names in `console.notebook.__all__`. Anything else may change between versions.
"""

__all__ = ["notebook"]
