"""Qwen3-VL on Megatron-Core. Import this before anything of megatron: it makes Megatron run where CUDA is absent."""

import logging

from qwen3vl_core.model import cpu

# Megatron warns at import about every optional package that is not installed
logging.getLogger("megatron").setLevel(logging.ERROR)
cpu.install()
