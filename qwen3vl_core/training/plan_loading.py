"""Reads a run's plan before anything heavy is imported, so that errors in it are reported at once. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

from qwen3vl_core import limits
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import read_small
from qwen3vl_core.layout.init_adapter import with_adapter
from qwen3vl_core.layout.resuming import completed
from qwen3vl_core.options import FinetuneOptions, from_mapping
from qwen3vl_core.run_record import PLAN, version_problem


def read_options(run_dir: Path) -> FinetuneOptions:
    """The options of `plan.json`. Raises RequestError for a plan that is missing, damaged or not of a finetune run."""
    file = run_dir / PLAN
    try:
        plan = json.loads(read_small(file, limits.RUN_JSON))
        values, kind = plan["options"], plan["kind"]
        if not isinstance(values, dict):
            raise TypeError(PLAN)
    except FileNotFoundError:
        raise RequestError(f"{file}: no such file; a run starts with qwen3vl finetune") from None
    except RequestError:
        raise
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        raise RequestError(f"{file}: not a plan of a run; start a new one with qwen3vl finetune") from None
    if problem := version_problem(plan):
        raise RequestError(f"{file}: {problem}")
    if kind != "finetune":
        raise RequestError(f"{file}: a plan of {kind}, not of finetune; use qwen3vl runs resume")
    return with_adapter(completed(from_mapping(FinetuneOptions, values)))
