"""The precisions that options name, as torch's types."""

from __future__ import annotations

import torch

# fp8 is a way to multiply: weights, gradients' inputs and everything between the products are bf16
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
