"""The memory estimate against the peak of a real training step on this GPU, at published sizes with random weights.

    python -m pytest -q -s tests/gpu/test_measured_memory.py

prints the table. Configurations that do not fit this GPU are skipped.
"""

from __future__ import annotations

import dataclasses
import gc
import time

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
if torch.cuda.is_available():
    pytest.importorskip("transformer_engine.pytorch")

from types import SimpleNamespace

from qwen3vl_core.model import process_groups

from qwen3vl_core.data.batch import Batch
from qwen3vl_core.data.pictures import PictureRules
from qwen3vl_core.formats import GIB
from qwen3vl_core.layout.flops import step_flops
from qwen3vl_core.layout.memory import estimate
from qwen3vl_core.layout.parameters import published
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.structure.micro_batch import IGNORED
from qwen3vl_core.training import setup, step

WITHIN = 0.10
# name -> (size, layers kept or 0 for all, tokens of pictures in a row, options)
RUNS = {
    "2B": ("2B", 0, 1024, dict(seq_length=4096, micro_batch_size=2)),
    "2B text only": ("2B", 0, 0, dict(seq_length=4096, micro_batch_size=2)),
    "2B selective": ("2B", 0, 1024, dict(seq_length=4096, micro_batch_size=2, recompute="sel")),
    "2B fp8": ("2B", 0, 1024, dict(seq_length=2048, micro_batch_size=2, precision="fp8")),
    "2B LoRA": ("2B", 0, 1024, dict(seq_length=4096, micro_batch_size=2, lora_rank=16)),
    "2B, 14 layers on the host": ("2B", 0, 1024, dict(seq_length=4096, micro_batch_size=2, recompute="offload", recompute_layers=14)),
    "4B, most of the optimizer on the host": (
        "4B",
        0,
        1024,
        dict(seq_length=2048, recompute="full", optimizer_offload=0.6, distributed_optimizer=True),
    ),
    "2B full recompute": ("2B", 0, 1024, dict(seq_length=4096, micro_batch_size=2, recompute="full")),
    "2B language only": ("2B", 0, 1024, dict(seq_length=4096, micro_batch_size=2, freeze="vision,projector")),
    "2B one short row": ("2B", 0, 256, dict(seq_length=512)),
    "4B": ("4B", 0, 1024, dict(seq_length=2048)),
    "4B long, full recompute": ("4B", 0, 1024, dict(seq_length=8192, recompute="full")),
    "8B, 8 layers": ("8B", 8, 1024, dict(seq_length=4096)),
    "A3B, 6 layers": ("A3B", 6, 1024, dict(seq_length=4096)),
    "4B LoRA fp8": ("4B", 0, 1024, dict(seq_length=2048, micro_batch_size=2, lora_rank=16, precision="fp8")),
    "A3B, 12 layers, LoRA": ("A3B", 12, 1024, dict(seq_length=4096, lora_rank=16)),
    "A3B, 12 layers, LoRA fp8": ("A3B", 12, 1024, dict(seq_length=4096, lora_rank=16, precision="fp8")),
}


def random_weights(model, source) -> None:
    """Random weights instead of a checkpoint's."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.fill_(1.0)


def micro_batch(architecture, rows: int, length: int, vision_tokens: int) -> Batch:
    """Rows of random tokens, each with one square picture, all other tokens trained."""
    side = int(vision_tokens**0.5) * 2
    ids = torch.randint(0, 1000, (rows, length))
    ids[:, 1 : 1 + vision_tokens] = architecture.image_token_id
    if vision_tokens:
        ids[:, 0] = architecture.vision_start_token_id
        ids[:, 1 + vision_tokens] = architecture.vision_end_token_id
    count = rows if vision_tokens else 0
    labels = torch.randint(0, 1000, (rows, length)).masked_fill(ids == architecture.image_token_id, IGNORED)
    return Batch(
        input_ids=ids, labels=labels, lengths=torch.full((rows,), length),
        patches=torch.randint(0, 256, (count * side * side, 3 * 256), dtype=torch.uint8),
        image_grid_thw=torch.tensor([[1, side, side]] * count).view(-1, 3).long(), keys=[str(i) for i in range(rows)],
        rules=PictureRules(), video_patches=torch.zeros(0, 3 * 2 * 256, dtype=torch.uint8),
        video_grid_thw=torch.zeros(0, 3).long(), video_rules=None,
    )  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_the_estimate_is_near_the_measured_peak(name, monkeypatch):
    size, layers, vision_tokens, changes = RUNS[name]
    architecture = published(size)
    if layers:
        architecture = dataclasses.replace(architecture, num_layers=layers)
    options = FinetuneOptions(**changes)
    options.global_batch_size = options.micro_batch_size
    guess = estimate(options, architecture, 1, vision_tokens)[0]
    if guess.total > 0.98 * torch.cuda.get_device_properties(0).total_memory:
        pytest.skip(f"needs about {guess.total / GIB:.0f} GiB")
    monkeypatch.setattr(setup, "fill", random_weights)
    process_groups.initialize()
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    training = setup.build(options, SimpleNamespace(architecture=architecture))
    static = torch.cuda.memory_allocated() - before
    batch = micro_batch(architecture, options.micro_batch_size, options.seq_length, vision_tokens)
    step.train_step(training, [batch])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    for _ in range(2):
        step.train_step(training, [batch])
    torch.cuda.synchronize()
    seconds = (time.monotonic() - began) / 2
    peak = torch.cuda.max_memory_allocated() - before
    held = torch.cuda.mem_get_info()
    tflops = step_flops(options, architecture, vision_tokens).model / seconds / 1e12
    guessed = guess.weights + guess.gradients + guess.optimizer
    print(
        f"\n| {name} | static {static / GIB:.2f}, estimated {guessed / GIB:.2f} | peak {peak / GIB:.2f}, estimated "
        f"{guess.allocated / GIB:.2f} ({guess.allocated / peak - 1:+.1%}) | on the GPU {(held[1] - held[0]) / GIB:.2f}, estimated "
        f"{guess.total / GIB:.2f} | {seconds:.3f} s, {tflops:.0f} TFLOP/s |"
    )
    del training, batch
    gc.collect()
    torch.cuda.empty_cache()
    # the two fp8 copies of a matrix are made in the first step, the moments of an offloaded optimizer too
    if options.precision != "fp8" and not options.optimizer_offload:
        assert static == pytest.approx(guessed, rel=0.01)
    assert peak == pytest.approx(guess.allocated, rel=WITHIN)
