"""Whether a finetune is valid, fits and can start: decided here and nowhere else. Imports no torch.

The command line, the console, the notebook, the recipe and the training all call `judge`. Rules that need neither the disk nor the
machine are in `option_problems`, which a form may call at every key press; everything that blocks is here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwen3vl_core.errors import RequestError
from qwen3vl_core.formats import GIB
from qwen3vl_core.language import filled
from qwen3vl_core.layout import flops, launch_scripts, memory
from qwen3vl_core.layout.adapters import trained_lines
from qwen3vl_core.layout.cuda_graphs import no_graph_because
from qwen3vl_core.layout.gpus import MEMORY_GIB, NOT_FREE, PEAK_BF16, can_wait, chosen, gpu_memory, gpu_of_memory, gpu_peak_tflops, in_use
from qwen3vl_core.layout.host_memory import ROOM as HOST_ROOM
from qwen3vl_core.layout.host_memory import host_memory_gib
from qwen3vl_core.layout.init_adapter import with_adapter
from qwen3vl_core.layout.machine_rules import ASSUMED_GPU, Machine, machine_problems
from qwen3vl_core.layout.measured_mfu import expected_mfu, longest
from qwen3vl_core.layout.memory import StageMemory
from qwen3vl_core.layout.parameters import published, total_parameters
from qwen3vl_core.layout.rules import architecture_of, data_problems, layout_problems
from qwen3vl_core.layout.sink_packages import sink_problems
from qwen3vl_core.layout.suggest import CARDS, ROOM, gpus_needed
from qwen3vl_core.layout.torchrun_command import gpu_count, model_ranks, processes_problem, requested_processes
from qwen3vl_core.options import FinetuneOptions, missing_values, option_problems, options_of
from qwen3vl_core.options.planning import PlanOptions
from qwen3vl_core.problems import Problem, unique
from qwen3vl_core.sizes import Architecture, size_of, size_problem

DEFAULT_MEMORY = CARDS[80]
"""GiB of the GPU that is assumed where there is none."""
HOST, TOO_BIG = "host-does-not-fit", "does-not-fit"
WORTH_SPLITTING = 0.5
"""GiB of a GPU from which a plan names a distributed optimizer."""
WORTH_SAYING = 0.05
"""Gain of longer packed rows from which a plan names them."""


@dataclass(frozen=True)
class StepEstimate:
    """The cost of a step, computed from its matrix products."""

    tflops: float
    """Model TFLOP: `language`, `vocabulary` and `vision`, without `recompute`."""
    language: float
    vocabulary: float
    vision: float
    recompute: float
    mfu: float
    """As measured for such a model and rows, or as the plan was told."""
    seconds: float
    tokens_per_second: float
    no_cuda_graph: str = ""
    """Why micro batches run kernel by kernel; empty if each is replayed as one CUDA graph."""


@dataclass(frozen=True)
class Estimate:
    """Estimated memory and time of a finetune whose layout is valid."""

    stages: tuple[StageMemory, ...]
    memory_gib: float
    """Of one GPU."""
    step: StepEstimate
    hours: float
    """Of all steps."""

    @property
    def peak_gib(self) -> float:
        """Of the stage that cost the most."""
        return round(memory.fullest(self.stages).total / GIB, 2)

    @property
    def fits(self) -> bool:
        return memory.fullest(self.stages).total <= ROOM * self.memory_gib * GIB

    @property
    def stages_gib(self) -> list[dict[str, Any]]:
        """`StageMemory.as_gib` of every stage."""
        return [stage.as_gib() for stage in self.stages]


@dataclass(frozen=True)
class Verdict:
    """What is known of a finetune before it starts."""

    options: FinetuneOptions
    problems: tuple[Problem, ...]
    """Every broken rule: of options, model, data, layout and, if it is to run here, of this machine."""
    warnings: tuple[Problem, ...] = ()
    """Problems that do not prevent a start: it does not fit according to the estimate, or rows are longer than the model's positions."""
    notes: tuple[Problem, ...] = ()
    """What would be faster, with the options as remedies; nothing is wrong without them."""
    architecture: Architecture | None = None
    """Of the checkpoint, else of the size; None if neither is known."""
    gpus: int = 1
    """Processes of the whole run."""
    memory_gib: float = DEFAULT_MEMORY
    """Of one GPU."""
    vision_tokens: int = 0
    """Picture tokens in a row that the estimate assumes."""
    here: bool = False
    """Whether it was judged for this machine."""
    estimate: Estimate | None = None
    """None if it was not requested, or the layout is not valid."""
    gpus_needed: int | None = None
    """If it does not fit: the number of GPUs on which a layout would."""

    @property
    def valid(self) -> bool:
        return not self.problems

    @property
    def fits(self) -> bool | None:
        """Whether it fits according to the estimate, on the GPUs and in this machine's memory; None without one."""
        return self.estimate.fits and self.fits_host if self.estimate is not None else None

    @property
    def fits_host(self) -> bool:
        """Whether this machine's memory is enough, as far as it is known."""
        return all(warning.code != HOST for warning in self.warnings)

    @property
    def cautions(self) -> tuple[Problem, ...]:
        """The warnings that no estimate shows."""
        return tuple(warning for warning in self.warnings if warning.code not in (HOST, TOO_BIG))

    @property
    def starts(self) -> bool | None:
        """Whether `qwen3vl finetune` would start it on this machine; None if it was judged for another one."""
        return (self.valid and not missing_values(self.options)) if self.here else None

    @property
    def layout(self) -> str:
        """`TP 2 x PP 1 x CP 1 x DP 4 = 8 GPUs`."""
        return launch_scripts.describe(self.options, self.gpus)

    def require_valid(self) -> Verdict:
        """Returns itself. Raises RequestError with every problem, if there are any."""
        if self.problems:
            raise RequestError(*self.problems)
        return self

    def as_json(self) -> dict[str, Any]:
        """What `qwen3vl plan --json` prints."""
        a, e = self.architecture, self.estimate
        record: dict[str, Any] = {
            "size": size_of(a) if a else None, "parameters": total_parameters(a) if a else None, "gpus": self.gpus,
            "memory_gib": round(self.memory_gib, 2), "vision_tokens": self.vision_tokens, "valid": self.valid, "fits": self.fits,
            "starts": self.starts, "problems": [p.as_json() for p in self.problems], "warnings": [p.as_json() for p in self.warnings],
            "notes": [p.as_json() for p in self.notes],
        }  # fmt: skip
        if e is not None:
            record |= {
                "layout": self.layout, "stages": e.stages_gib, "peak_gib": e.peak_gib, "step": dict(vars(e.step)), "hours": e.hours,
            }  # fmt: skip
        if a is not None and self.valid:
            record["trained"] = trained_lines(self.options, a)
        if self.fits is False:
            record["gpus_needed"] = self.gpus_needed
        return record


def judge(
    options: FinetuneOptions, plan: PlanOptions | None = None, *, problems: Iterable[Problem] = (),
    architecture: Architecture | None = None,
    processes: int = 0, machine: Machine | None = None, disk: bool = True, cluster: bool = True,
) -> Verdict:  # fmt: skip
    """Everything that can be known of a finetune before its processes start. Blocks on the disk and on nvidia-smi; raises nothing.

    plan: for how many GPUs (0: those of this machine), and how to estimate; None: no estimate. problems: found before, such as
    values that could not be parsed; `options` holds their defaults. architecture, processes, machine: if the caller
    knows them. disk: look for model and data. cluster: with `--env dlc`, require the cluster's environment, as at a start.
    """
    if options.init_adapter and disk:
        try:
            options = with_adapter(options)
        except RequestError as error:
            problems = [*problems, *error.problems]
    # a value outside its range would invalidate every equation
    in_range = all(o.problem_of(getattr(options, o.name)) is None for o in options_of(type(options)) if not o.many)
    broken: list[Problem] = [*problems, *option_problems(options)]
    if disk:
        architecture, model_problems = _model(options)
        broken += [*model_problems, *data_problems(options)]
    elif architecture is not None and options.size:
        broken += filter(None, [size_problem(options.size, architecture, options.load)])
    asked = "gpus" if plan is not None and plan.gpus else ""
    here, waits = not asked and not processes, False
    if options.gpu_ids:
        readable = here and all(problem.option != "gpu_ids" for problem in broken)
        ids, ids_problem = chosen(options.gpu_ids, options.nproc) if readable else (None, None)
        if ids_problem is not None and ids_problem.code == NOT_FREE and can_wait(options.queue, options.nproc or model_ranks(options)):
            waits, ids_problem = True, None
            options = replace(options, nproc=options.nproc or model_ranks(options))
        options = replace(options, gpu_ids=ids)
        broken += [ids_problem] if ids_problem is not None else []
    count = processes or (plan.gpus if plan is not None else 0)
    if not count:
        count, process_problems = _processes(options, cluster) if in_range else (1, [])
        broken += process_problems
    layout = []
    if in_range:
        ranks = model_ranks(options)
        if architecture is not None:
            layout = list(layout_problems(options, architecture, count or ranks, asked))
        elif count % ranks:
            layout = [processes_problem(options, count, asked)]
    broken += layout
    if machine is None and here:
        machine = Machine.here(options.gpu_ids)
    if machine is not None:
        broken += [*machine_problems(options, machine), *sink_problems(options)]
    verdict = Verdict(options, unique(broken), architecture=architecture, gpus=count or model_ranks(options), here=here)
    if architecture is not None and options.seq_length > architecture.max_position_embeddings:
        positions = architecture.max_position_embeddings
        beyond = Problem("beyond-positions", "seq_length", options.seq_length, {"most": positions}, ({"seq_length": positions},))
        verdict = replace(verdict, warnings=(beyond,))
    if plan is None:
        return verdict
    vision_tokens = memory.default_vision_tokens(options) if plan.vision_tokens < 0 else plan.vision_tokens
    verdict = replace(
        verdict,
        memory_gib=plan.memory
        or MEMORY_GIB.get(plan.gpu or "")
        or gpu_memory(options.nproc or None, options.gpu_ids, free=waits)
        or DEFAULT_MEMORY,
        vision_tokens=vision_tokens,
    )
    if vision_tokens > options.seq_length:
        rule = {"seq_length": options.seq_length}
        most = Problem("vision-tokens-beyond-row", "vision_tokens", vision_tokens, rule, ({"vision_tokens": options.seq_length},))
        return replace(verdict, problems=(*verdict.problems, most))
    if architecture is None or layout or not in_range:
        return verdict
    on = machine if machine is not None and machine.gpus else ASSUMED_GPU
    try:
        estimate = _estimate(options, architecture, verdict.gpus, verdict.memory_gib, vision_tokens, plan, on)
    except RequestError:
        # an option names parts or layers that do not exist, which is among the problems
        return verdict
    if here and options.env == "dsw" and (beyond_host := _host_problem(estimate, verdict.gpus)):
        verdict = replace(verdict, warnings=(*verdict.warnings, beyond_host))
    notes = _split_optimizer(estimate, options, architecture, verdict.gpus, vision_tokens, on)
    if estimate.fits:
        longer = _longer_rows(estimate, options, architecture, verdict.gpus, vision_tokens, plan, on)
        return replace(verdict, estimate=estimate, notes=(*notes, *longer))
    needed = gpus_needed(options, architecture, estimate.memory_gib, verdict.gpus, per_node=plan.gpus_per_node, vision_tokens=vision_tokens)
    busy = "" if plan.memory or plan.gpu else in_use(options.nproc or None, options.gpu_ids)
    return replace(
        verdict, estimate=estimate, gpus_needed=needed, notes=notes, warnings=(*verdict.warnings, _too_big(estimate, needed, busy))
    )


def _split_optimizer(
    estimate: Estimate, options: FinetuneOptions, a: Architecture, gpus: int, vision_tokens: int, machine: Machine
) -> tuple[Problem, ...]:
    """What a GPU holds less if the data parallel ranks split the optimizer's state, which each updates whole without."""
    split = replace(options, distributed_optimizer=True)
    if options.distributed_optimizer or next(layout_problems(split, a, gpus), None) is not None:
        return ()
    saved = estimate.peak_gib - round(memory.fullest(memory.estimate(split, a, gpus, vision_tokens, machine)).total / GIB, 2)
    if saved < WORTH_SPLITTING:
        return ()
    ranks = gpus // (options.tp * options.pp)
    return (Problem("optimizer-not-split", rule={"ranks": ranks, "gib": round(saved, 1)}, remedies=({"distributed_optimizer": True},)),)


def _longer_rows(
    estimate: Estimate, options: FinetuneOptions, a: Architecture, gpus: int, vision_tokens: int, plan: PlanOptions, machine: Machine
) -> tuple[Problem, ...]:
    """Whether longer packed rows that were measured and fit would be faster by WORTH_SAYING or more; of several the fastest. The
    samples stay as long as they are, so a token costs the same in them and the gain is that of MFU."""
    if not options.packing or plan.mfu:
        return ()
    best, gain, length = options, WORTH_SAYING, 2 * options.seq_length
    while length <= longest(a):
        times = length // options.seq_length
        batch, rest = divmod(options.global_batch_size, times)
        # as many tokens a step, where the batch can be divided
        same = not rest and batch % (gpus // (options.tp * options.pp * options.cp)) == 0
        tried = replace(options, seq_length=length, global_batch_size=batch if same else options.global_batch_size)
        faster = expected_mfu(tried, a, not estimate.step.no_cuda_graph) / estimate.step.mfu - 1
        stages = tuple(memory.estimate(tried, a, gpus, min(vision_tokens * times, length), machine))
        if faster >= gain and replace(estimate, stages=stages).fits:
            best, gain = tried, faster
        length *= 2
    if best is options:
        return ()
    remedy = {name: getattr(best, name) for name in ("seq_length", "global_batch_size") if getattr(best, name) != getattr(options, name)}
    return (Problem("longer-rows-faster", "seq_length", options.seq_length, {"percent": round(100 * gain)}, (remedy,)),)


def _host_problem(estimate: Estimate, processes: int) -> Problem | None:
    """Pinned memory of all processes of this machine, stages evenly among them, that it does not have."""
    each = sum(stage.host for stage in estimate.stages) / len(estimate.stages) / GIB
    memory = host_memory_gib() if each else None
    if memory is None or each * processes <= HOST_ROOM * memory:
        return None
    rule = {"processes": processes, "each": round(each, 1), "needed": round(each * processes, 1), "memory": round(memory, 1)}
    return Problem(HOST, rule=rule)


def _too_big(estimate: Estimate, needed: int | None, busy: str = "") -> Problem:
    advice: str = "use larger GPUs, or a smaller model"
    if needed:
        advice = filled("use {} GPUs with the right layout (--suggest --gpus {})", needed, needed)
    advice = busy or advice
    rule = {"needed": estimate.peak_gib, "memory": round(estimate.memory_gib, 2), "gpus_needed": needed, "advice": advice}
    return Problem(TOO_BIG, rule=rule)


def _model(options: FinetuneOptions) -> tuple[Architecture | None, tuple[Problem, ...]]:
    """(architecture of the checkpoint, or of the size if that is unknown; problems of both)."""
    if not options.load:
        return (published(options.size) if options.size else None), ()
    try:
        architecture = architecture_of(options.load)
    except RequestError as error:
        # the layout can still be checked with the size's architecture
        return (published(options.size) if options.size else None), error.problems
    problem = size_problem(options.size, architecture, str(Path(options.load).expanduser())) if options.size else None
    return architecture, ((problem,) if problem else ())


def _processes(options: FinetuneOptions, cluster: bool) -> tuple[int, tuple[Problem, ...]]:
    """(processes of the whole run, problems of the cluster's environment). 0: unknown, because of the problems."""
    if options.env == "dlc" and not cluster:
        return options.nproc or gpu_count(options.gpu_ids) or model_ranks(options), ()
    try:
        nodes, each = requested_processes(options)
    except RequestError as error:
        return 0, error.problems
    return nodes * each, ()


def peak_tflops(plan: PlanOptions) -> float:
    """Dense bf16 peak of one of the plan's GPUs in TFLOP/s: as given, of the GPU that is named, of the usual one with the memory that is
    given, else of this machine's."""
    name = plan.gpu or (gpu_of_memory(plan.memory) if plan.memory else None)
    return plan.peak_tflops or (PEAK_BF16[name] / 1e12 if name else gpu_peak_tflops()) or flops.PEAK_TFLOPS


def _estimate(
    options: FinetuneOptions, a: Architecture, gpus: int, gib: float, vision_tokens: int, plan: PlanOptions, machine: Machine
) -> Estimate:
    cost = flops.step_flops(options, a, vision_tokens)
    no_graph = no_graph_because(options, a, machine)
    mfu = plan.mfu or expected_mfu(options, a, not no_graph)
    peak = peak_tflops(plan)
    seconds = flops.step_seconds(options, a, gpus, vision_tokens, mfu, peak)
    step = StepEstimate(
        tflops=round(cost.model / 1e12, 3), language=round((cost.language + cost.attention) / 1e12, 3),
        vocabulary=round(cost.vocabulary / 1e12, 3), vision=round(cost.vision / 1e12, 3), recompute=round(cost.recompute / 1e12, 3),
        mfu=mfu, seconds=round(seconds, 3), tokens_per_second=round(options.global_batch_size * options.seq_length / seconds, 1),
        no_cuda_graph=no_graph,
    )  # fmt: skip
    return Estimate(
        tuple(memory.estimate(options, a, gpus, vision_tokens, machine)), gib, step, round(seconds * options.train_iters / 3600, 3)
    )
