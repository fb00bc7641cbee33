"""Qwen3-VL on Megatron-Core. Import this before any megatron module: it lets Megatron run without CUDA."""

import logging
import warnings

from qwen3vl_core.model import patches

# Megatron warns at import about optional packages that are not installed, about its own defaults, and about experimental parts
logging.getLogger("megatron").setLevel(logging.ERROR)
for _message in (".*Apex (is|are) not installed", ".*full scope is deprecated", "MimoModelConfig is experimental"):
    warnings.filterwarnings("ignore", message=_message)
patches.install()
