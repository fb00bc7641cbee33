"""The precisions that options name, as torch's types."""

from __future__ import annotations

import torch

# with fp8 only the GEMMs are in fp8: weights, gradients and all other activations are bf16
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
