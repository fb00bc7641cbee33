"""The console of Qwen3-VL runs: run store, supervisor, terminal screens, notebook widgets.

Promised are `qwen3vl console`, `qwen3vl runs` and `qwen3vl notebook` with their options, exit codes and `--json`, the files of a run's
folder, and the names in `console.notebook.__all__`. Every other module may move from one version to the next.
"""

__all__ = ["notebook"]
