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
    check_options,
    from_mapping,
    missing_values,
    option_problems,
    options_of,
    read_mapping,
    shell_line,
    to_arguments,
    to_mapping,
    with_remedy,
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
    "check_options",
    "from_mapping",
    "missing_values",
    "option_problems",
    "options_of",
    "read_mapping",
    "shell_line",
    "to_arguments",
    "to_mapping",
    "with_remedy",
]
