"""Every option of every command, declared once. Imports no torch."""

from qwen3vl_core.options.commands import (
    COMMANDS,
    CompareOptions,
    ConvertOptions,
    DownloadOptions,
    InspectOptions,
    PrepareOptions,
)
from qwen3vl_core.options.declare import (
    Option,
    add_arguments,
    from_mapping,
    options_of,
    shell_line,
    to_arguments,
    to_mapping,
)
from qwen3vl_core.options.finetune import FinetuneOptions

__all__ = [
    "COMMANDS",
    "CompareOptions",
    "ConvertOptions",
    "DownloadOptions",
    "FinetuneOptions",
    "InspectOptions",
    "Option",
    "PrepareOptions",
    "add_arguments",
    "from_mapping",
    "options_of",
    "shell_line",
    "to_arguments",
    "to_mapping",
]
