"""What every command reads its arguments with."""

from __future__ import annotations

import argparse
from typing import NoReturn

from qwen3vl_core.errors import RequestError


class Parser(argparse.ArgumentParser):
    """Argument errors as one line: raises RequestError."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see {self.prog} --help")
