"""The training of the tests: a small random model on random conversations, in any layout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from qwen3vl_core.model import process_groups
from qwen3vl_core.model.lora import of_adapters

import torch

from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.layout.adapters import stage_parameters
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.run_record import TRACKER
from qwen3vl_core.structure.micro_batch import IGNORED, Structure, StructureRules, build_structure
from qwen3vl_core.structure.picture_shares import own_patches
from qwen3vl_core.training import setup, step
from tests import tiny

GLOBAL_BATCH, FEW_SAMPLES = 8, 4
SPLIT = dict(precision="bf16", distributed_optimizer=True)
AWARE = SPLIT | dict(use_precision_aware_optimizer=True)
GRADIENTS = dict(main_grads_dtype="bf16")
OPTIMIZER_FORMS = {
    "plain": SPLIT,
    "aware": AWARE,
    "gradients": SPLIT | GRADIENTS,
    "aware, gradients": AWARE | GRADIENTS,
    "first moment": AWARE | dict(exp_avg_dtype="bf16"),
    "all in bf16": AWARE | GRADIENTS | dict(exp_avg_dtype="bf16", exp_avg_sq_dtype="bf16"),
}
"""Options of each precision of gradients and moments, and of both optimizers."""


@dataclass
class Micro:
    """A micro batch as the loader gives it."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    structure: Structure | None = None
    dealt: int = 0

    @property
    def attention_mask(self) -> torch.Tensor:
        return self.inputs["attention_mask"]

    @property
    def lengths(self) -> torch.Tensor:
        return self.attention_mask.sum(1)

    def structured(self, rules: StructureRules) -> Micro:
        given = {k: v for k, v in self.inputs.items() if k != "pixel_values"}
        # pixels are not those of a picture, so they are padded to no bucket
        structure, inputs = build_structure(replace(rules, buckets=False), **given, labels=self.labels), self.inputs
        if "pixel_values" in inputs:
            pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
            inputs = inputs | {"pixel_values": own_patches(pixels, grid, rules.cp_size, rules.cp_rank, buckets=False)}
        return replace(self, structure=structure, inputs=inputs)

    @property
    def shaped(self) -> Structure:
        assert self.structure is not None
        return self.structure

    def tensors(self) -> dict[str, torch.Tensor]:
        pixels = self.inputs.get("pixel_values")
        return self.shaped.tensors() | ({} if pixels is None else {"pixel_values": pixels})

    def inputs_of(self, tensors, dtype):
        structure = self.shaped.with_tensors({name: tensors[name] for name in self.shaped.tensors()})
        pixels = tensors.get("pixel_values")
        return {"structure": structure, "pixel_values": None if pixels is None else pixels.to(dtype)}

    def step_inputs(self, device, dtype):
        return self.inputs_of({name: value.to(device) for name, value in self.tensors().items()}, dtype)


def rows(seed: int, count: int = GLOBAL_BATCH) -> list[tuple]:
    """The samples of one global batch: text only, one and two pictures, different lengths."""
    made = []
    for i in range(count):
        n = 5 + (seed * 7 + i * 3) % 11
        made.append([(n,), (2, ("image", 4, 6), n), (1, ("image", 2, 4), 2, ("image", 4, 4), n)][(seed + i) % 3])
    return made


def micro_batches(seed: int, size: int, dp_rank: int = 0, dp: int = 1, count: int = GLOBAL_BATCH) -> list[Micro]:
    """This rank's micro batches of global batch `seed` of `count` samples; these do not depend on `size` or `dp`."""
    samples = []
    for i, row in enumerate(rows(seed, count)):
        samples.append((row, seed * 100 + i))
    made = []
    for start in range(0, count, size):
        if start // size % dp != dp_rank:
            continue
        parts = [tiny.Conversations(s).row(*row) for row, s in samples[start : start + size]]
        whole = tiny.Conversations()
        for part in parts:
            whole.rows += part.rows
        inputs = whole.inputs()
        alone = [part.inputs() for part in parts]
        for key in ("pixel_values", "image_grid_thw"):
            tensors = [a[key] for a in alone if key in a]
            if tensors:
                inputs[key] = torch.cat(tensors)
        labels = torch.full_like(inputs["input_ids"], IGNORED)
        for r, row in enumerate(whole.rows):
            # the last third of each row is the answer
            first = len(row) * 2 // 3
            labels[r, first : len(row) - 1] = torch.tensor(row[first + 1 :])
        made.append(Micro(inputs, labels))
    return made


def options(folder: Path, **changes) -> FinetuneOptions:
    values = dict(
        load=str(folder), train_data="", precision="fp32", micro_batch_size=2, global_batch_size=GLOBAL_BATCH, train_iters=10, lr=1e-3,
        min_lr=1e-4, lr_warmup_iters=2,
    )  # fmt: skip
    return FinetuneOptions(**(values | changes))


def train(folder: Path, steps: int = 3, *, gradients: bool = False, **changes):
    """Losses and gradient norms of `steps` steps on this process's layout (the group must be there, or one process)."""
    from megatron.core import parallel_state

    o = options(folder, **changes)
    process_groups.initialize(o.tp, o.pp, cp=o.cp, ep=o.ep, etp=o.etp, vp=o.vp)
    try:
        training = setup.build(o, open_source(folder))
        dp, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        results = [step.train_step(training, micro_batches(s, o.micro_batch_size, rank, dp)) for s in range(steps)]
        evaluated = step.evaluate(training, micro_batches(99, o.micro_batch_size, rank, dp))
        return [(r.loss, r.grad_norm, r.tokens, r.learning_rate) for r in results] + [(evaluated.loss,)]
    finally:
        process_groups.destroy()


def train_in_two_halves(folder: Path, checkpoints: Path, save: dict, load: dict | None = None, steps: int = 2):
    """Losses of steps 3 and 4: of the run that went on, and (by a run that loads its checkpoint) of the one resumed.

    save, load: options of the first run and of the one that loads; load=None: the checkpoint is there, only resume.
    """
    from megatron.core import parallel_state

    from qwen3vl_core.checkpoint.saving import save_training
    from qwen3vl_core.checkpoint.training_state import load_training

    def run(o, first: int, training):
        dp, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        results = [step.train_step(training, micro_batches(s, o.micro_batch_size, rank, dp)) for s in range(first, first + steps)]
        return [(r.loss, r.grad_norm, r.learning_rate) for r in results]

    o = options(folder, **save)
    process_groups.initialize(o.tp, o.pp, cp=o.cp, ep=o.ep, etp=o.etp, vp=o.vp)
    try:
        training = setup.build(o, open_source(folder))
        parts = dict(models=training.models, optimizer=training.optimizer, scheduler=training.scheduler)
        if load is not None:
            iteration, extra = load_training(checkpoints, **parts)
            assert isinstance(extra.pop("layout_kept"), bool) and (iteration, extra) == (steps, {"data": {"at": steps}})
            return run(o, steps, training)
        run(o, 0, training)
        common = setup.common_state(training.architecture, o)
        save_training(checkpoints, steps, **parts, extra={"data": {"at": steps}}, common=common, side=folder)
        return run(o, steps, training)
    finally:
        process_groups.destroy()


def save_the_beginning(folder: Path, checkpoints: Path, changes: dict) -> None:
    """Save a run before its first step, with the state of its optimizer."""
    from qwen3vl_core.checkpoint.saving import save_training

    o = options(folder, **changes)
    process_groups.initialize(o.tp, o.pp, cp=o.cp, ep=o.ep, etp=o.etp, vp=o.vp)
    try:
        training = setup.build(o, open_source(folder))
        parts = dict(models=training.models, optimizer=training.optimizer, scheduler=training.scheduler)
        save_training(checkpoints, 1, **parts, extra={}, common=setup.common_state(training.architecture, o), side=folder)
    finally:
        process_groups.destroy()


def pack(batch: Micro, multiple: int) -> Micro:
    """The rows of a micro batch as documents of one packed row, each padded to `multiple` tokens."""
    lengths = batch.inputs["attention_mask"].sum(1).tolist()
    padded = [-(-n // multiple) * multiple for n in lengths]
    ids, labels = torch.zeros(1, sum(padded), dtype=torch.long), torch.full((1, sum(padded)), IGNORED)
    mask = torch.zeros_like(ids)
    at = 0
    for row, (n, room) in enumerate(zip(lengths, padded, strict=True)):
        ids[0, at : at + n], labels[0, at : at + n] = batch.inputs["input_ids"][row, :n], batch.labels[row, :n]
        mask[0, at : at + n] = 1
        at += room
    bounds = torch.tensor([0, *padded]).cumsum(0)
    kept = {k: v for k, v in batch.inputs.items() if k not in ("input_ids", "attention_mask")}
    return Micro({"input_ids": ids, "attention_mask": mask, "cu_seqlens": bounds} | kept, labels)


def gradients(folder: Path, changes: dict, packed: bool = False):
    """One global batch: (loss, trained tokens, norm), and this rank's part of the gradients, as Megatron would save them:
    [(key, shape of the whole, offset, values)], each number from one rank of the world. Of a LoRA run those of the adapters, whose B
    is filled first. The batch is of FEW_SAMPLES, with and without pictures: what it costs is the number of micro batches."""
    from megatron.core import parallel_state
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories, is_main_replica

    o = options(folder, global_batch_size=FEW_SAMPLES, **changes)
    process_groups.initialize(o.tp, o.pp, cp=o.cp, ep=o.ep, etp=o.etp, vp=o.vp)
    try:
        training = setup.build(o, open_source(folder))
        dp, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        batches = micro_batches(7, o.micro_batch_size, rank, dp, FEW_SAMPLES)
        if packed:
            batches = [pack(b, training.rules.length_multiple) for b in batches]
        if training.adapters:
            fill_adapters(training.models)
            count = sum(p.numel() for model in training.models for p in model.parameters() if p.requires_grad)
            stage = parallel_state.get_pipeline_model_parallel_rank()
            assert count == sum(stage_parameters(training.adapters, o, training.architecture, stage).values()), "the plan counts otherwise"
        for model in training.wrapped:
            model.train()
            model.zero_grad_buffer()
        loss, tokens = step._mean_loss(step._run(training, step.structured(training, batches), forward_only=False))
        training.optimizer.prepare_grads()
        norm = float(training.optimizer.get_grad_norm())
        pieces = []
        for model in training.models:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.main_grad
            state = model.sharded_state_dict()
            state = of_adapters(state) if training.adapters else state
            apply_factories(state)
            for value in nested_values(state):
                if isinstance(value, ShardedTensor) and is_main_replica(value.replica_id):
                    data = value.data[(None,) * value.prepend_axis_num]
                    pieces.append((value.key, tuple(value.global_shape), tuple(value.global_offset), data.detach().numpy().copy()))
        return (loss, tokens, norm), pieces
    finally:
        process_groups.destroy()


def whole(ranks: list) -> dict[str, torch.Tensor]:
    """The tensors that the ranks' pieces make up; each number of each tensor must come from exactly one of them."""
    made: dict[str, torch.Tensor] = {}
    times: dict[str, torch.Tensor] = {}
    for _, pieces in ranks:
        for key, shape, offset, values in pieces:
            box = tuple(slice(a, a + n) for a, n in zip(offset, values.shape, strict=True))
            made.setdefault(key, torch.zeros(shape))[box] = torch.from_numpy(values)
            times.setdefault(key, torch.zeros(shape, dtype=torch.int8))[box] += 1
    assert all(bool((count == 1).all()) for count in times.values())
    return made


def fill_adapters(models) -> None:
    """Fill every B with values that are the same in every layout."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    for model in models:
        state = {k: v for k, v in model.sharded_state_dict().items() if "adapter.linear_out" in k}
        apply_factories(state)
        for tensor in nested_values(state):
            assert isinstance(tensor, ShardedTensor)
            generator = torch.Generator().manual_seed(sum(tensor.key.encode()))
            whole = torch.randn(tensor.global_shape, generator=generator) * 0.05
            lead = tensor.prepend_axis_num
            size = (1,) * lead + tuple(tensor.local_shape)
            box = whole[tuple(slice(o, o + n) for o, n in zip(tensor.global_offset, size, strict=True))]
            with torch.no_grad():
                tensor.data.copy_(box.reshape(tensor.local_shape))


def save_adapters(folder: Path, target: Path, changes: dict) -> None:
    """A step of a LoRA run, then every B filled, and the checkpoint that a run would write."""
    from megatron.core import parallel_state

    from qwen3vl_core.checkpoint import lora_merge
    from qwen3vl_core.checkpoint.saving import save_training

    o, source = options(folder, **changes), open_source(folder)
    process_groups.initialize(o.tp, o.pp, cp=o.cp, ep=o.ep, etp=o.etp, vp=o.vp)
    try:
        training = setup.build(o, source)
        dp, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        step.train_step(training, micro_batches(0, o.micro_batch_size, rank, dp))
        fill_adapters(training.models)
        save_training(
            target, 1, models=training.models, optimizer=training.optimizer, scheduler=training.scheduler, side=folder,
            extra={lora_merge.ADAPTERS_KEY: lora_merge.adapter_note(training.adapters, source)},
            common=setup.common_state(training.architecture, o),
        )  # fmt: skip
    finally:
        process_groups.destroy()


def adapted_logits(folder: Path, checkpoints: Path, changes: dict, inputs: dict):
    """Of the model of a LoRA run with its adapters beside its weights, as it is trained."""
    from qwen3vl_core.checkpoint.training_state import load_training

    o = options(folder, **changes)
    process_groups.initialize()
    try:
        training = setup.build(o, open_source(folder))
        load_training(checkpoints, models=training.models, optimizer=training.optimizer, scheduler=training.scheduler)
        with torch.no_grad():
            return training.models[0].eval()(**inputs).float().cpu().numpy()
    finally:
        process_groups.destroy()


def train_one_batch(folder: Path, steps: int, **changes) -> list[float]:
    """Losses of `steps` steps on the same global batch."""
    o = options(folder, **changes)
    process_groups.initialize(o.tp, o.pp)
    try:
        training = setup.build(o, open_source(folder))
        return [step.train_step(training, micro_batches(0, o.micro_batch_size)).loss for _ in range(steps)]
    finally:
        process_groups.destroy()


def save_beside_training(folder: Path, checkpoints: Path):
    """Save asynchronously after two steps and train two more before it is finished: (tracker there, named checkpoints) before,
    the losses of the two, and those after a resume."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from qwen3vl_core.checkpoint import retention
    from qwen3vl_core.checkpoint.saving import start_saving
    from qwen3vl_core.checkpoint.training_state import load_training

    def run(o, first):
        dp, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        return [step.train_step(training, micro_batches(s, o.micro_batch_size, rank, dp)).loss for s in (first, first + 1)]

    o = options(folder, distributed_optimizer=True)
    process_groups.initialize()
    try:
        training = setup.build(o, open_source(folder))
        parts = dict(models=training.models, optimizer=training.optimizer, scheduler=training.scheduler)
        run(o, 0)
        common = setup.common_state(training.architecture, o)
        saving = start_saving(checkpoints, 2, **parts, extra={}, common=common, side=folder, asynchronous=True)
        went_on = run(o, 2)
        before = (checkpoints / TRACKER).exists(), retention.iterations(checkpoints)
        dist.barrier()
        assert saving.finished(wait=True)
        training = setup.build(o, open_source(folder))
        parts = dict(models=training.models, optimizer=training.optimizer, scheduler=training.scheduler)
        assert load_training(checkpoints, **parts) == (2, {"layout_kept": True})
        return before, went_on, run(o, 2)
    finally:
        process_groups.destroy()


def train_a_bad_step(folder: Path, what: str, changes: dict):
    """A step with a NaN picture, an infinite gradient, or a loss that the guard calls a spike: (problem, updated, whether weights and
    optimizer state stayed), and (problem, updated, loss) of an ordinary step after it."""
    from megatron.core import parallel_state

    from qwen3vl_core.training.guard import FEWEST, Guard

    o = options(folder, **changes)
    process_groups.initialize()
    try:
        training = setup.build(o, open_source(folder))
        dp, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        guard = Guard(10.0, skip=True)
        step.train_step(training, micro_batches(0, o.micro_batch_size, rank, dp), guard=guard)

        def numbers():
            inner = [part.optimizer for part in training.optimizer.chained_optimizers]
            state = [t.clone() for one in inner for each in one.state.values() for t in each.values()]
            return [p.detach().clone() for p in training.models[0].parameters()] + state

        before = numbers()
        batches = micro_batches(1, o.micro_batch_size, rank, dp)
        hook = None
        if what == "loss" and rank == 0:
            next(b for b in batches if "pixel_values" in b.inputs).inputs["pixel_values"][0] = float("nan")
        if what == "gradient" and rank == 0:
            weight = next(p for n, p in training.models[0].named_parameters() if n.endswith("final_layernorm.weight"))
            hook = weight.register_hook(lambda gradient: gradient * float("inf"))
        if what == "spike":
            for _ in range(FEWEST):
                guard.note(0.1, "")
        bad = step.train_step(training, batches, guard=guard)
        same = all(torch.equal(a, b) for a, b in zip(before, numbers(), strict=True))
        if hook is not None:
            hook.remove()
        then = step.train_step(training, micro_batches(2, o.micro_batch_size, rank, dp), guard=Guard())
        return bad.problem, bad.updated, same, (then.problem, then.updated, then.loss)
    finally:
        process_groups.destroy()


def expert_counts(folder: Path, changes: dict, packed: bool = False, steps: int = 2):
    """Of each step: (tokens of each expert [layers][experts] over the world, `StepResult.expert_load`)."""
    from megatron.core import parallel_state

    from qwen3vl_core.training import expert_load

    o = options(folder, global_batch_size=FEW_SAMPLES, lr=0.0, min_lr=0.0, **changes)
    process_groups.initialize(o.tp, o.pp, cp=o.cp, ep=o.ep, etp=o.etp, vp=o.vp)
    try:
        training = setup.build(o, open_source(folder))
        dp, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        found = []
        for number in range(steps):
            batches = micro_batches(number, o.micro_batch_size, rank, dp, FEW_SAMPLES)
            if packed:
                batches = [pack(b, training.rules.length_multiple) for b in batches]
            result = step.train_step(training, batches)
            step.evaluate(training, batches)
            found.append((expert_load.world_counts(training.config).tolist(), result.expert_load))
        return found
    finally:
        process_groups.destroy()
