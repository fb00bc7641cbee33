"""Each Triton kernel against what it replaces, in a CUDA graph on shapes of 2B and A3B with a packed row of 8192: one GPU, 3 minutes.

    python benchmarks/kernels.py            # a table: milliseconds forward and backward, the share of the GPU's memory bandwidth
    python benchmarks/kernels.py --sweep    # besides, sizes of blocks and numbers of warps: two minutes more

What a step gains is for the layers of the 2B model, of experts for those of A3B, and four micro batches.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from qwen3vl_core.model.apply_rope import rotate

import torch
from torch import Tensor

ROW, PATCHES, MICRO_BATCHES = 8192, 16384, 4
REPEAT, ROUNDS = 10, 5
# (tokens, batch, groups, query heads of a group, head, norm): 2B, 8B, 8B on four tensor parallel ranks, 32B, and the vision
# towers of 2B and 8B
QK_SHAPES = [
    (ROW, 1, 8, 2, 128, True), (4096, 2, 8, 4, 128, True), (1001, 1, 2, 4, 128, True), (777, 3, 8, 8, 128, True),
    (PATCHES, 1, 16, 1, 64, False), (5001, 1, 16, 1, 72, False),
]  # fmt: skip


class Work:
    """A computation with gradients, its inputs and the gradients of its outputs."""

    def __init__(self, compute: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor], gradients: list[Tensor] | None = None) -> None:
        self.compute, self.inputs = compute, inputs
        self.gradients = gradients or [torch.randn_like(output) for output in compute(*inputs)]

    def forward(self) -> list[Tensor]:
        return list(self.compute(*self.inputs))

    def both(self) -> list[Tensor]:
        """Outputs, and gradients of the inputs."""
        outputs = self.forward()
        return outputs + list(torch.autograd.grad(outputs, [i for i in self.inputs if i.requires_grad], self.gradients))


class Case(Work):
    """A kernel's work, and the same work of the modules that it replaces."""

    def __init__(
        self, compute: Callable[..., Any], replaced: Callable[..., Any], inputs: list[Tensor], moved: tuple[int, int], layers: int
    ) -> None:
        """moved: bytes that forward and backward must read and write; layers: calls in a micro batch."""
        super().__init__(compute, inputs)
        self.replaced, self.moved, self.layers = Work(replaced, inputs, self.gradients), moved, layers


def random(*shape: int, dtype: torch.dtype, mean: float = 0.0) -> Tensor:
    return (mean + torch.randn(*shape, device="cuda")).to(dtype).requires_grad_()


def qk_rope(
    length: int, batch: int, groups: int, heads: int, size: int, norm: bool, dtype: torch.dtype = torch.bfloat16, layers: int = 28
) -> Case:
    """Norm of query and key and rotary embedding, with Transformer Engine's modules."""
    from qwen3vl_core.model.kernels import qk_rope as module

    import transformer_engine.pytorch as te
    from megatron.core.extensions.transformer_engine import SplitAlongDim

    torch.manual_seed(1)
    angles = torch.rand(length, batch, 1, size // 2, device="cuda") * ROW
    angles = torch.cat((angles, angles), -1)
    norms = [te.RMSNorm(size, eps=1e-6, params_dtype=dtype, device="cuda") for _ in range(2)] if norm else [None, None]
    weights = [n.weight for n in norms if n is not None]
    for weight in weights:
        weight.data.copy_(1 + torch.randn(size, device="cuda") / 5)

    def compute(qkv: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return module.qk_rope(qkv, angles, *(weights or (None, None)), eps=1e-6, groups=groups, size=size)

    def replaced(qkv: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grouped = qkv.view(length, batch, groups, (heads + 2) * size)
        # as Megatron splits: Transformer Engine 2.11 no longer has the name that Megatron-Core 0.16 imports
        parts = [heads * size, size, size]
        query, key, value = torch.split(grouped, parts, dim=3) if SplitAlongDim is None else SplitAlongDim(grouped, 3, parts)
        query = query.reshape(length, batch, groups * heads, size)
        query, key = (states if n is None else n(states) for n, states in zip(norms, (query, key), strict=True))
        return rotate(query, angles), rotate(key, angles), value

    qkv = random(length, batch, groups * (heads + 2) * size, dtype=dtype)
    qkv_bytes = qkv.numel() * dtype.itemsize
    # backward does not read the value, and nothing of the input without a norm
    read = qkv_bytes * (heads + 1) // (heads + 2) if norm else 0
    return Case(compute, replaced, [qkv, *weights], (2 * qkv_bytes, 2 * qkv_bytes + read), layers)


def swiglu(rows: int = ROW, columns: int = 6144, dtype: torch.dtype = torch.bfloat16) -> Case:
    """SwiGLU, with Megatron's compiled functions."""
    from qwen3vl_core.model.kernels import swiglu as module

    from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl

    torch.manual_seed(1)
    gate_up = random(rows, 1, 2 * columns, dtype=dtype)
    one = rows * columns * dtype.itemsize
    return Case(
        lambda x: (module.swiglu(x),), lambda x: (bias_swiglu_impl(x, None, False, False),), [gate_up], (3 * one, 5 * one), layers=28
    )


def cross_entropy(rows: int = 2048, vocabulary: int = 151936, dtype: torch.dtype = torch.bfloat16) -> Case:
    """The loss of trained tokens, with Megatron's compiled functions; their group is this process alone."""
    from qwen3vl_core.model import process_groups
    from qwen3vl_core.model.kernels import cross_entropy as module

    from megatron.core import parallel_state
    from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy

    process_groups.initialize()
    torch.manual_seed(1)
    logits = random(rows, 1, vocabulary, dtype=dtype)
    targets = torch.randint(0, vocabulary, (rows, 1), device="cuda")
    group = parallel_state.get_tensor_model_parallel_group()
    one = logits.numel() * dtype.itemsize
    return Case(
        lambda x: (module.cross_entropy(x, targets),), lambda x: (fused_vocab_parallel_cross_entropy(x, targets, group),), [logits],
        (one, 2 * one), layers=1,
    )  # fmt: skip


class VocabularyWork(Work):
    """Work whose second input is the tied weights of embedding and output layer, with their fp32 buffer set to zero before."""

    def both(self) -> list[Tensor]:
        weight: Any = self.inputs[1]
        weight.main_grad.zero_()
        weight.grad_added_to_main_grad = False
        outputs = self.forward()
        of_states, of_weight = torch.autograd.grad(outputs, self.inputs, self.gradients)
        if not weight.grad_added_to_main_grad:
            weight.main_grad.add_(of_weight)
        return [of_states, weight.main_grad]


class VocabularyCase(VocabularyWork, Case):
    """Gradients in the buffer, in place and afterwards."""

    ids: Tensor
    """long [1, tokens]."""

    def __init__(
        self, compute: Callable[..., Any], replaced: Callable[..., Any], inputs: list[Tensor], moved: tuple[int, int], layers: int
    ) -> None:
        Case.__init__(self, compute, replaced, inputs, moved, layers)
        self.replaced = VocabularyWork(replaced, inputs, self.gradients)


def weight_gradients(tokens: int = ROW, trained: int = 2048, vocabulary: int = 151936, hidden: int = 2048) -> VocabularyCase:
    """Embedding and output layer of tied weights in bf16. The bandwidth is that of the additions to the buffer alone."""
    from qwen3vl_core.model import weight_gradients as module

    torch.manual_seed(1)
    # half of the tokens are those of pictures, all the same
    ids = torch.randint(0, vocabulary, (1, tokens), device="cuda")
    ids[:, ::2] = vocabulary - 1
    states = random(trained, 1, hidden, dtype=torch.bfloat16)
    weight: Any = random(vocabulary, hidden, dtype=torch.bfloat16)
    weight.main_grad = torch.zeros(vocabulary, hidden, device="cuda")

    def compute(states: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return module._Product.apply(states, weight, False), module._Lookup.apply(ids, weight)

    def replaced(states: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return torch.nn.functional.linear(states, weight), torch.nn.functional.embedding(ids, weight)

    logits = trained * vocabulary * 2
    case = VocabularyCase(compute, replaced, [states, weight], (logits, 3 * weight.main_grad.numel() * 4), layers=1)
    case.ids = ids
    return case


# tokens, experts chosen of a token, experts, hidden size and FFN size of A3B
A3B = (ROW, 8, 128, 2048, 768)


def _routing(tokens: int, chosen: int, experts: int) -> tuple[Tensor, Tensor]:
    """(scores in bf16, bool map), both [tokens, experts], by random routing."""
    torch.manual_seed(1)
    scores = torch.rand(tokens, experts, device="cuda")
    routing_map = torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(chosen, dim=1).indices, True)
    return scores.to(torch.bfloat16).requires_grad_(), routing_map


def _routed(tokens: int, chosen: int, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """(token of each row, places of each token's rows, where the rows of each expert end), by random routing."""
    from qwen3vl_core.model.experts import LocalDispatcher

    scores, routing_map = _routing(tokens, chosen, experts)
    dispatcher = LocalDispatcher(chosen)
    dispatcher.dispatch_preprocess(torch.zeros(tokens, 1, 8, device="cuda", dtype=torch.bfloat16), routing_map, scores)
    return dispatcher.token, dispatcher.places, dispatcher.ends


def expert_order(tokens: int, chosen: int, experts: int, hidden: int, ffn: int) -> Case:
    """The order of tokens by their experts, with PyTorch's sorting."""
    from qwen3vl_core.model.experts import LocalDispatcher
    from qwen3vl_core.model.kernels import expert_order as module

    scores, routing_map = _routing(tokens, chosen, experts)
    dispatcher = LocalDispatcher(chosen)

    def replaced(scores: Tensor) -> tuple[Tensor]:
        return (dispatcher._sort(routing_map.t().flip(0), scores),)

    # the map is read, its prefix sum written and read twice, rows and places written; backward reads both and writes the gradient
    pairs, rows = tokens * experts, tokens * chosen
    moved = pairs * (1 + 3 * 4) + rows * (8 + 8 + 2), pairs * (1 + 4 + 2) + rows * 2
    return Case(lambda x: (module.order(x, routing_map, 0, experts, chosen)[0],), replaced, [scores], moved, layers=48)


def expert_rows(tokens: int, chosen: int, experts: int, hidden: int, ffn: int) -> Case:
    """Rows for the experts and their sums for the tokens, with PyTorch's indexing."""
    from qwen3vl_core.model.kernels import expert_rows as module

    token, places, ends = _routed(tokens, chosen, experts)

    def compute(rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.detach()
        picked = module.pick(rows, token, ends)
        return picked, module.sums(picked, places)

    def replaced(rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.detach()
        picked = rows.index_select(0, token)
        return picked, picked[places].sum(1)

    # both directions do both: a token's row to each of its experts and back; nothing is left for a backward pass to measure
    one = tokens * chosen * hidden * 2
    return ForwardCase(compute, replaced, [random(tokens, hidden, dtype=torch.bfloat16)], (2 * one, 0), layers=2 * 48)


def expert_swiglu(tokens: int, chosen: int, experts: int, hidden: int, ffn: int) -> Case:
    """SwiGLU weighted by probabilities, with Megatron's compiled functions."""
    from qwen3vl_core.model.kernels import expert_swiglu as module

    from megatron.core.fusions.fused_bias_swiglu import weighted_bias_swiglu_impl

    ends = _routed(tokens, chosen, experts)[2]
    weights = torch.rand(tokens * chosen, device="cuda").to(torch.bfloat16).requires_grad_()
    one = tokens * chosen * ffn * 2
    return Case(
        lambda x, w: (module.expert_swiglu(x, w, ends),), lambda x, w: (weighted_bias_swiglu_impl(x, None, w.unsqueeze(-1)),),
        [random(tokens * chosen, 2 * ffn, dtype=torch.bfloat16), weights], (3 * one, 5 * one), layers=48,
    )  # fmt: skip


def expert_gradients(tokens: int, chosen: int, experts: int, hidden: int, ffn: int) -> Case:
    """Weight gradients of fc1 added to fp32 buffers, with PyTorch's grouped product and an addition."""
    from qwen3vl_core.model.kernels import expert_gradients as module

    ends = _routed(tokens, chosen, experts)[2]
    gradient = random(tokens * chosen, 2 * ffn, dtype=torch.bfloat16).detach()
    buffers = [torch.zeros(experts, 2 * ffn, hidden, device="cuda") for _ in range(2)]

    def compute(x: Tensor) -> tuple[Tensor]:
        module.add_gradients(gradient, x.detach(), ends, buffers[0])
        return (buffers[0],)

    def replaced(x: Tensor) -> tuple[Tensor]:
        buffers[1].add_(torch.nn.functional.grouped_mm(gradient.t(), x.detach(), offs=ends))
        return (buffers[1],)

    # fc2's are half as large
    rows = random(tokens * chosen, hidden, dtype=torch.bfloat16)
    return ForwardCase(compute, replaced, [rows], (2 * buffers[0].numel() * 4, 0), layers=72)


class ForwardCase(Case):
    """A kernel without gradients: only its forward pass is measured."""

    def __init__(
        self, compute: Callable[..., Any], replaced: Callable[..., Any], inputs: list[Tensor], moved: tuple[int, int], layers: int
    ) -> None:
        self.compute, self.inputs, self.moved, self.layers, self.gradients = compute, inputs, moved, layers, []
        self.replaced = ForwardWork(replaced, inputs)

    def both(self) -> list[Tensor]:
        return self.forward()


class ForwardWork(Work):
    """See `ForwardCase`."""

    def __init__(self, compute: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor]) -> None:
        self.compute, self.inputs, self.gradients = compute, inputs, []

    def both(self) -> list[Tensor]:
        return self.forward()


CASES: dict[str, Callable[[], Case]] = {
    "qk_rope": lambda: qk_rope(*QK_SHAPES[0]),
    "qk_rope, vision": lambda: qk_rope(*QK_SHAPES[4], layers=24),
    "swiglu": swiglu,
    "cross_entropy": cross_entropy,
    "weight_gradients": weight_gradients,
    "expert_order": lambda: expert_order(*A3B),
    "expert_rows": lambda: expert_rows(*A3B),
    "expert_swiglu": lambda: expert_swiglu(*A3B),
    "expert_gradients": lambda: expert_gradients(*A3B),
}
# the constants of a kernel's module that --sweep tries, each with its values
_QK: dict[tuple[str, ...], Sequence[object]] = {("FORWARD", "BACKWARD"): list(itertools.product((8, 16, 32), (2, 4, 8)))}
SWEEPS: dict[str, tuple[str, dict[tuple[str, ...], Sequence[object]]]] = {
    "qk_rope": ("qk_rope", _QK),
    "qk_rope, vision": ("qk_rope", _QK),
    "swiglu": ("swiglu", {("BLOCK",): (512, 1024, 2048), ("WARPS",): (4, 8)}),
    "cross_entropy": ("cross_entropy", {("BLOCK",): (4096, 8192, 16384), ("WARPS",): (4, 8, 16)}),
    "expert_order": ("expert_order", {("TOKENS",): (8, 16, 32), ("WARPS",): (2, 4, 8)}),
    "expert_rows": ("expert_rows", {("WARPS",): (2, 4, 8)}),
    "expert_swiglu": ("expert_swiglu", {("WARPS",): (2, 4, 8)}),
    "expert_gradients": ("expert_gradients", {("BLOCK_IN",): (128, 256), ("WARPS",): (4, 8), ("STAGES",): (3, 4)}),
}


def milliseconds(compute: Callable[[], object]) -> float:
    """Of one call, in a graph of `REPEAT` calls; the shortest of `ROUNDS` replays. The tensors are larger than the GPU's cache."""
    stream = torch.cuda.Stream()
    times = []
    with torch.cuda.stream(stream):
        compute()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # NCCL's thread polls meanwhile
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for _ in range(REPEAT):
                compute()
        for _ in range(ROUNDS + 1):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(stream)
            graph.replay()
            end.record(stream)
            end.synchronize()
            times.append(start.elapsed_time(end) / REPEAT)
    return min(times[1:])


def forward_and_backward(work: Work) -> tuple[float, float]:
    forward = milliseconds(work.forward)
    return forward, 0.0 if not work.gradients else milliseconds(work.both) - forward


def table(names: list[str]) -> None:
    print("| kernel | replaced: forward, backward ms | kernel: forward, backward ms | GB/s forward, backward | a step gains ms |")
    print("| --- | --- | --- | --- | --- |")
    for name in names:
        case = CASES[name]()
        before, after = forward_and_backward(case.replaced), forward_and_backward(case)
        speed = [moved / time / 1e6 if time else 0.0 for moved, time in zip(case.moved, after, strict=True)]
        gain = (sum(before) - sum(after)) * case.layers * MICRO_BATCHES
        cells = [", ".join(f"{x:.3f}" for x in before), ", ".join(f"{x:.3f}" for x in after), ", ".join(f"{x:,.0f}" for x in speed)]
        print(f"| {name} | {' | '.join(cells)} | {gain:.1f} |", flush=True)


def sweep(names: list[str]) -> None:
    """Times of each combination of a module's constants, which this process alone changes."""
    import importlib

    for name in names:
        if name not in SWEEPS:
            continue
        module_name, constants = SWEEPS[name]
        module = importlib.import_module(f"qwen3vl_core.model.kernels.{module_name}")
        case = CASES[name]()
        for values in itertools.product(*constants.values()):
            for names_of_constants, value in zip(constants, values, strict=True):
                vars(module).update(dict.fromkeys(names_of_constants, value))
            forward, backward = forward_and_backward(case)
            tried = ", ".join(f"{'/'.join(n)} {v}" for n, v in zip(constants, values, strict=True))
            print(f"{name}, {tried}: {forward:.3f}, {backward:.3f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--sweep", action="store_true")
    arguments = parser.parse_args()
    table(arguments.only)
    if arguments.sweep:
        sweep(arguments.only)


if __name__ == "__main__":
    main()
