"""All patches of torch, Megatron-Core and Transformer Engine; no other module assigns to attributes of theirs
(`tests/test_patches.py` checks it). Each patch states why upstream needs it and which version makes it unnecessary.

| patch | applied |
| --- | --- |
| `torch_on_cpu` | without CUDA, when `qwen3vl_core.model` is imported |
| `megatron_on_cpu`, with `fused_adam` | the same |
| `write_results` | before every checkpoint save of a run |
| `master_weights` | to the optimizer of a bf16 or fp16 run without the distributed optimizer |
| `precision_aware`, with `adam_in_parts` | to a precision-aware optimizer |
| `adam_in_parts` | to an optimizer of more tensors than Transformer Engine takes at once |

Versions were checked in the sources: 0.16.1, which the project pins, and 0.19.2, the newest for Python 3.12. Megatron's
extension points do not count as patches: a layer spec with our modules, a subclass, the `rotary_pos_emb` of a `GPTModel`
instance.
"""

from __future__ import annotations

from qwen3vl_core.model.patches import torch_on_cpu

import torch

_installed = False


def installed() -> bool:
    """Whether `install` has patched this process."""
    return _installed


def install() -> None:
    """Patch torch and import Megatron-Core so that it runs on this CPU; does nothing with CUDA, or when called again."""
    global _installed
    if _installed or torch.cuda.is_available():
        return
    _installed = True
    torch_on_cpu.patch_cuda_module()
    torch_on_cpu.patch_tensors()
    # imported after torch is patched: it subclasses and imports what was replaced
    from qwen3vl_core.model.patches import megatron_on_cpu

    with megatron_on_cpu.light_imports():
        import megatron.core.models.gpt
        import megatron.core.tensor_parallel  # noqa: F401

        megatron_on_cpu.patch_moe()
        megatron_on_cpu.patch_uneven_collectives()
        megatron_on_cpu.patch_results_queue()
        megatron_on_cpu.patch_adam()
