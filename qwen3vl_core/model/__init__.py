"""Qwen3-VL on Megatron-Core. Import this before any megatron module: it lets Megatron run without CUDA."""

import logging
import warnings

from qwen3vl_core.model import patches

# Megatron warns at import about every optional package that is not installed, and about its own defaults
logging.getLogger("megatron").setLevel(logging.ERROR)
for _message in (".*Apex (is|are) not installed", ".*full scope is deprecated"):
    warnings.filterwarnings("ignore", message=_message)
patches.install()
