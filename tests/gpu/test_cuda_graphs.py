"""Micro batches as CUDA graphs: the losses and gradients equal those of eager execution, without any synchronization with the host."""

from __future__ import annotations

import pytest
import torch
from megatron.core import parallel_state

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
if torch.cuda.is_available():
    pytest.importorskip("transformer_engine.pytorch")

from qwen3vl_core.model import process_groups
from qwen3vl_core.model.experts import one_block, weights_of

from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.data.batch import collate, pack
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.training import expert_load, setup, step
from tests import tiny
from tests.structure.test_structure import RULES, VIDEO_RULES, sample

SHAPE = dict(hidden=256, head_dim=64, heads=4, kv_heads=2, ffn=512, layers=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tiny.hf_model(7, **SHAPE).bfloat16(), tmp_path_factory.mktemp("dense"))


def global_batch(number: int, packed: bool, multiple: int = 1):
    """Four micro batches of pictures, text and videos; no two steps alike. multiple: as `pack` takes it."""
    made = []
    for micro in range(4):
        seed = number * 10 + micro
        parts = [(5 + seed % 7, ("image", 4, 4 + 2 * (seed % 3)), 20), (30 + seed % 5,), (3, ("video", 2, 4, 4), 9)]
        samples = [sample(100 * seed + i, *part) for i, part in enumerate(parts[: 2 + seed % 2])]
        rules = (0, RULES, VIDEO_RULES)
        made.append(pack(samples, *rules, multiple=multiple) if packed else collate(samples, *rules))
    return made


def losses(folder, steps: int = 5, packed: bool = True, graphs: bool = True, **changes):
    """(loss, gradient norm) of some steps, and how many micro batches were replayed."""
    values = dict(
        load=str(folder), train_data="", precision="bf16", micro_batch_size=1, global_batch_size=4, train_iters=10, lr=1e-3, min_lr=1e-4,
        lr_warmup_iters=2, seq_length=256, packing=packed,
    )  # fmt: skip
    options = FinetuneOptions(**(values | changes))
    process_groups.initialize(options.tp, options.pp, cp=options.cp, ep=options.ep, vp=options.vp)
    try:
        training = setup.build(options, open_source(folder))
        if training.graphs is not None and not graphs:
            # the same shapes and kernels, launched one by one
            training.graphs.max_graphs = 0
        first, multiple = 100 * parallel_state.get_data_parallel_rank(), setup.multiple_of(options)
        results = []
        for number in range(steps):
            batches = global_batch(first + number, packed, multiple)
            results.append(step.train_step(training, batches))
            counts = expert_load.world_counts(training.config)
            if counts is not None and torch.distributed.get_world_size() == 1:
                # replayed or not, and recomputed or not, each token is counted once in each layer
                tokens = sum(int(batch.lengths.sum()) for batch in batches)
                assert counts.sum(1).tolist() == [training.config.moe_router_topk * tokens] * training.config.num_layers
                assert results[-1].expert_load == tuple(expert_load.figures(counts).tolist())
        replayed = training.graphs.replayed if training.graphs else 0
        return [(r.loss, r.grad_norm) for r in results], replayed
    finally:
        process_groups.destroy()
        torch.cuda.set_stream(torch.cuda.default_stream())


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    return tiny.save(tiny.hf_moe_model(7, **SHAPE, expert_ffn=64).bfloat16(), tmp_path_factory.mktemp("experts"))


@pytest.mark.parametrize(
    "changes", [{}, {"recompute": "sel"}, {"recompute": "full"}, {"lora_rank": 4}, {"distributed_optimizer": True}], ids=str
)
def test_replayed_losses_of_experts_equal_eager_losses(experts, changes):
    one_by_one, none = losses(experts, graphs=False, **changes)
    replayed, count = losses(experts, **changes)
    assert none == 0 and count >= 8
    for (loss, norm), (other, other_norm) in zip(one_by_one, replayed, strict=True):
        assert other == pytest.approx(loss, rel=2e-3) and other_norm == pytest.approx(norm, rel=2e-2)


def test_expert_weights_of_a_layer_are_one_tensor_before_the_first_step(experts):
    """Made by the first forward, it would lie in the graphs' memory, and the old weights' memory would not be released."""
    process_groups.initialize()
    try:
        options = FinetuneOptions(load=str(experts), train_data="", precision="bf16", global_batch_size=4, seq_length=256, packing=True)
        training = setup.build(options, open_source(experts))
        linears = [module for module in training.models[0].modules() if hasattr(module, "num_gemms")]
        assert len(linears) == 2 * SHAPE["layers"] and all(one_block(weights_of(linear)) is not None for linear in linears)
    finally:
        process_groups.destroy()
        torch.cuda.set_stream(torch.cuda.default_stream())


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"packed": False}, {"recompute": "full"}, {"recompute": "sel"}, {"lora_rank": 8}, {"lora_rank": 8, "lora_dropout": 0.1},
        {"freeze": "vision"}, {"distributed_optimizer": True, "overlap_grad_reduce": True}, {"precision": "fp16"},
        *({"precision": "fp8", "fp8_recipe": recipe} for recipe in ("tensorwise", "delayed", "blockwise")),
    ],
    ids=str,
)  # fmt: skip
def test_replayed_losses_equal_eager_losses(folder, changes):
    one_by_one, none = losses(folder, graphs=False, **changes)
    replayed, count = losses(folder, **changes)
    assert none == 0 and count >= 8
    if changes.get("lora_dropout"):
        return
    for (loss, norm), (other, other_norm) in zip(one_by_one, replayed, strict=True):
        assert other == pytest.approx(loss, rel=2e-3) and other_norm == pytest.approx(norm, rel=2e-2)


def test_graphs_have_the_losses_of_the_eager_path(folder):
    """Without graphs rows are not rounded to buckets and every position has logits."""
    plain, none = losses(folder, cuda_graph="off")
    replayed, count = losses(folder)
    assert none == 0 and count >= 8
    for (loss, _), (other, _) in zip(plain, replayed, strict=True):
        assert other == pytest.approx(loss, rel=2e-3)


def test_a_micro_batch_never_waits_for_the_gpu(folder):
    process_groups.initialize()
    try:
        options = FinetuneOptions(load=str(folder), train_data="", precision="bf16", micro_batch_size=1, global_batch_size=4,
                                  train_iters=10, seq_length=256, packing=True)  # fmt: skip
        training = setup.build(options, open_source(folder))
        for _ in range(2):
            batches = [b.pin_memory() for b in step.structured(training, global_batch(0, True))]
            training.graphs.forward_backward(batches)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            training.graphs.forward_backward(batches)
            training.graphs.max_graphs = 0
            training.graphs.graphs.clear()
            training.graphs.forward_backward(batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    finally:
        process_groups.destroy()
        torch.cuda.set_stream(torch.cuda.default_stream())
