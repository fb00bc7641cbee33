"""What the console's commands read their arguments with."""

from __future__ import annotations

import argparse
from typing import NoReturn

from qwen3vl_core.errors import RequestError

STORE_HELP = "the run store (default $QWEN3VL_RUNS, else ~/.qwen3vl/runs)"


class Parser(argparse.ArgumentParser):
    """Argument errors as one line."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see {self.prog} --help")
