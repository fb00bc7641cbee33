"""The argument parser of every command."""

from __future__ import annotations

import argparse
from typing import NoReturn

from qwen3vl_core.errors import RequestError


class Parser(argparse.ArgumentParser):
    """Raises RequestError, with one line, for invalid arguments."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see {self.prog} --help")
