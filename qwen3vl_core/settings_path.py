"""Where the user's settings are. Imports nothing of the package, as the language of its messages is one of them."""

from __future__ import annotations

import os
from pathlib import Path

SETTINGS_VARIABLE = "QWEN3VL_SETTINGS"
DEFAULT_SETTINGS = Path("~/.qwen3vl/settings.yaml")


def settings_file() -> Path:
    """The path of the user's settings."""
    return Path(os.environ.get(SETTINGS_VARIABLE) or DEFAULT_SETTINGS).expanduser()
