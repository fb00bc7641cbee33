"""Every patch of torch, Megatron-Core and Transformer Engine, and nothing else: no other module assigns to theirs
(`tests/test_patches.py` checks it). Each patch says why upstream needs it and which version makes it unnecessary.

| patch | applied |
| --- | --- |
| `torch_on_cpu` | where CUDA is absent, when `qwen3vl_core.model` is imported |
| `megatron_on_cpu`, with `fused_adam` | the same |
| `write_results` | to every save of a run's checkpoint |
| `master_weights` | to the optimizer of a bf16 or fp16 run without the distributed optimizer |

Versions are what was read in the sources: 0.16.1, which the project pins, and 0.19.2, the newest for Python 3.12. Not
counted as patches are Megatron's own openings: a layer spec with our modules in it, a subclass, the `rotary_pos_emb` of a
`GPTModel` that was built.
"""

from __future__ import annotations

from qwen3vl_core.model.patches import torch_on_cpu

import torch

_installed = False


def installed() -> bool:
    """Whether `install` has patched this process."""
    return _installed


def install() -> None:
    """Patch torch and import Megatron-Core so that it runs on this CPU; nothing where CUDA is available, or twice."""
    global _installed
    if _installed or torch.cuda.is_available():
        return
    _installed = True
    torch_on_cpu.patch_cuda_module()
    torch_on_cpu.patch_tensors()
    # made after torch is patched: it subclasses and imports what the above replaces
    from qwen3vl_core.model.patches import megatron_on_cpu

    with megatron_on_cpu.light_imports():
        import megatron.core.models.gpt
        import megatron.core.tensor_parallel  # noqa: F401

        megatron_on_cpu.patch_moe()
        megatron_on_cpu.patch_uneven_collectives()
        megatron_on_cpu.patch_results_queue()
        megatron_on_cpu.patch_adam()
