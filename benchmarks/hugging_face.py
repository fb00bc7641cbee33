"""transformers as its Trainer runs it, alone and with Liger's kernels and PEFT: peers of `finetune.py`.

sdpa attention, rows padded to the longest of their micro batch, gradients clipped, torch's fused AdamW.

Experts are grouped matrix products (`experts_implementation="grouped_mm"`), the fastest that transformers has without further packages.

- `transformers`: bf16 weights without fp32 masters, which is less work and memory than this project's
- `autocast`: fp32 weights, computed in bf16
- `liger`: as `transformers`, with Liger's kernels for norms and rope, and its loss that makes no logits of a whole micro batch
- `peft`: as `liger`, the weights frozen, PEFT's LoRA adapters in bf16
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import random_run
import torch
from padded_rows import DEVICE

from qwen3vl_core.data.batch import Batch
from qwen3vl_core.sizes import Architecture
from qwen3vl_core.structure.micro_batch import IGNORED

KINDS = ("transformers", "autocast", "liger", "peft")
LORA_RANK = 16
# the language layers' matrices, which are this project's default too; names of the vision tower's differ
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def build(kind: str, config: dict[str, Any]) -> torch.nn.Module:
    """The model with random weights on the device."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    experts = {"experts_implementation": "grouped_mm"} if "num_experts" in config["text_config"] else {}
    if kind in ("liger", "peft") and DEVICE == "cuda":
        from liger_kernel import transformers as liger

        if experts:
            # its own experts are a product for each expert
            options = inspect.signature(liger.apply_liger_kernel_to_qwen3_vl_moe).parameters
            liger.apply_liger_kernel_to_qwen3_vl_moe(**({"swiglu": False} if "swiglu" in options else {}))
        else:
            liger.apply_liger_kernel_to_qwen3_vl()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        model_config = AutoConfig.from_pretrained(folder)
    # a CPU takes minutes for bf16
    dtype = torch.float32 if kind == "autocast" or DEVICE == "cpu" else torch.bfloat16
    with torch.device(DEVICE):
        model = AutoModelForImageTextToText.from_config(model_config, dtype=dtype, attn_implementation="sdpa", **experts)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, random_run.SPREAD) if parameter.dim() > 1 else parameter.fill_(1.0)
    if kind == "peft":
        from peft import LoraConfig, get_peft_model

        adapters = LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, lora_dropout=0.0, target_modules=list(LORA_TARGETS))
        # adapters in bf16: fp32 ones, PEFT's default, would be slower
        model = get_peft_model(model, adapters, autocast_adapter_dtype=False)
    return model.train()


def trainer(kind: str, config: dict[str, Any]) -> Callable[[list[Batch]], float]:
    """Runs a step of micro batches and returns its loss, the mean over all trained tokens."""
    if kind not in KINDS:
        raise SystemExit(f"{kind}: no such peer; there are {', '.join(KINDS)} and megatron")
    a, model = Architecture.from_config(config), build(kind, config)
    dtype = next(model.parameters()).dtype
    trained_parameters = [p for p in model.parameters() if p.requires_grad]
    fused = {"fused": True} if DEVICE == "cuda" else {}
    optimizer = torch.optim.AdamW(trained_parameters, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.01, **fused)

    def train(micro_batches: list[Batch]) -> float:
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=DEVICE)
        trained = sum(batch.tokens for batch in micro_batches)
        for batch in micro_batches:
            inputs = batch.model_inputs(DEVICE, dtype)
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == a.image_token_id).int()
            labels = batch.labels.to(DEVICE, non_blocking=True)
            with torch.autocast(DEVICE, torch.bfloat16, enabled=kind == "autocast"):
                if kind in ("liger", "peft"):
                    # no logits of the whole batch: the loss is computed block by block
                    loss = model(**inputs, labels=labels, shift_labels=labels).loss * (batch.tokens / trained)
                else:
                    logits = model(**inputs).logits
                    loss = torch.nn.functional.cross_entropy(
                        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
                    ) / trained  # fmt: skip
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(trained_parameters, 1.0)
        optimizer.step()
        return float(total)

    return train
