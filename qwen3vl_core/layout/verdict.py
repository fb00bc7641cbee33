"""Whether a finetune is valid, fits and starts: decided here and nowhere else. Imports no torch.

`judge` is what the command line, the console, the notebook, the recipe and the training call. The rules that need neither disk nor
machine are `option_problems` of the options, which a form may call at every key press; everything that blocks is here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwen3vl_core.errors import RequestError
from qwen3vl_core.formats import GIB
from qwen3vl_core.layout import flops, launch_scripts, memory
from qwen3vl_core.layout.adapters import trained_lines
from qwen3vl_core.layout.cuda_graphs import no_graph_because
from qwen3vl_core.layout.gpus import gpu_memory
from qwen3vl_core.layout.machine_rules import Machine, machine_problems
from qwen3vl_core.layout.memory import StageMemory
from qwen3vl_core.layout.parameters import published, total_parameters
from qwen3vl_core.layout.rules import architecture_of, data_problems, layout_problems
from qwen3vl_core.layout.sink_packages import sink_problems
from qwen3vl_core.layout.suggest import CARDS, ROOM, gpus_needed
from qwen3vl_core.layout.torchrun_command import asked_processes, gpu_count, model_ranks, processes_problem
from qwen3vl_core.options import FinetuneOptions, missing_values, option_problems, options_of
from qwen3vl_core.options.planning import PlanOptions
from qwen3vl_core.problems import Problem, unique
from qwen3vl_core.sizes import Architecture, size_of, size_problem

ASSUMED_GPU = Machine(gpus=1, capability=9.0, transformer_engine=True)
"""What the estimate reckons with where there is no GPU: one that Transformer Engine is installed for."""
DEFAULT_MEMORY = CARDS[80]
"""GiB of the card assumed where there is no GPU."""


@dataclass(frozen=True)
class StepEstimate:
    """Cost of a step, computed from its matrix products."""

    tflops: float
    """Of the model: `language`, `vocabulary` and `vision`; `recompute` comes on top."""
    language: float
    vocabulary: float
    vision: float
    recompute: float
    mfu: float
    seconds: float
    tokens_per_second: float
    no_cuda_graph: str = ""
    """Why its micro batches run kernel by kernel, at the host's pace; empty where each is replayed as one CUDA graph."""


@dataclass(frozen=True)
class Estimate:
    """Memory and time of a finetune whose layout is valid, from formulas."""

    stages: tuple[StageMemory, ...]
    memory_gib: float
    """Of one GPU."""
    step: StepEstimate
    hours: float
    """Of all steps."""

    @property
    def peak_gib(self) -> float:
        """Of the fullest stage."""
        return round(memory.fullest(self.stages).total / GIB, 2)

    @property
    def fits(self) -> bool:
        return memory.fullest(self.stages).total <= ROOM * self.memory_gib * GIB

    @property
    def stages_gib(self) -> list[dict[str, Any]]:
        """The stages' parts in GiB."""
        return [stage.as_gib() for stage in self.stages]


@dataclass(frozen=True)
class Verdict:
    """What is known of a finetune before it starts."""

    options: FinetuneOptions
    problems: tuple[Problem, ...]
    """Every broken rule: of options, model, data, layout and, where it is to run here, of this machine."""
    warnings: tuple[Problem, ...] = ()
    """Problems that do not keep it from starting: it does not fit by the estimate."""
    architecture: Architecture | None = None
    """Of the checkpoint, else of the size; None where neither is known."""
    gpus: int = 1
    """Processes of the whole run."""
    memory_gib: float = DEFAULT_MEMORY
    """Of one GPU."""
    vision_tokens: int = 0
    """Tokens of pictures in a row that the estimate assumes."""
    here: bool = False
    """Judged for this machine, not for another."""
    estimate: Estimate | None = None
    """None where it was not requested, or the layout is not valid."""
    gpus_needed: int | None = None
    """Where it does not fit: GPUs on which a layout would."""

    @property
    def valid(self) -> bool:
        return not self.problems

    @property
    def fits(self) -> bool | None:
        """By the estimate; None without one."""
        return self.estimate.fits if self.estimate is not None else None

    @property
    def starts(self) -> bool | None:
        """Whether `qwen3vl finetune` would start it on this machine; None: judged for another one."""
        return (self.valid and not missing_values(self.options)) if self.here else None

    @property
    def layout(self) -> str:
        """`TP 2 x PP 1 x CP 1 x DP 4 = 8 GPUs`."""
        return launch_scripts.describe(self.options, self.gpus)

    def require_valid(self) -> Verdict:
        """Itself. Raises RequestError with every problem."""
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
    """Everything that can be known of a finetune before its processes start. Blocks on disk and nvidia-smi; raises nothing.

    plan: the GPUs that are meant, 0: this machine's, and how the estimate is made; None: no estimate. problems: known already, as
    of values that could not be parsed; `options` holds defaults in their place. architecture, processes, machine: where the caller
    knows them. disk: whether model and data are looked for. cluster: whether `--env dlc` needs its environment, as at a start.
    """
    own = option_problems(options)
    # a value outside its range would spoil every equation
    sound = all(o.problem_of(getattr(options, o.name)) is None for o in options_of(type(options)) if not o.many)
    broken: list[Problem] = [*problems, *own]
    if disk:
        architecture, of_model = _model(options)
        broken += [*of_model, *data_problems(options)]
    elif architecture is not None and options.size:
        broken += filter(None, [size_problem(options.size, architecture, options.load)])
    asked = "gpus" if plan is not None and plan.gpus else ""
    here = not asked and not processes
    count = processes or (plan.gpus if plan is not None else 0)
    if not count:
        count, of_processes = _processes(options, cluster) if sound else (1, [])
        broken += of_processes
    layout = []
    if sound:
        ranks = model_ranks(options)
        if architecture is not None:
            layout = list(layout_problems(options, architecture, count or ranks, asked))
        elif count % ranks:
            layout = [processes_problem(options, count, asked)]
    broken += layout
    if machine is None and here:
        machine = Machine.here()
    if machine is not None:
        broken += [*machine_problems(options, machine), *sink_problems(options)]
    verdict = Verdict(options, unique(broken), architecture=architecture, gpus=count or model_ranks(options), here=here)
    if plan is None:
        return verdict
    seen = memory.default_vision_tokens(options) if plan.vision_tokens < 0 else plan.vision_tokens
    verdict = replace(verdict, memory_gib=plan.memory or gpu_memory() or DEFAULT_MEMORY, vision_tokens=seen)
    if seen > options.seq_length:
        rule = {"seq_length": options.seq_length}
        most = Problem("vision-tokens-beyond-row", "vision_tokens", seen, rule, ({"vision_tokens": options.seq_length},))
        return replace(verdict, problems=(*verdict.problems, most))
    if architecture is None or layout or not sound:
        return verdict
    try:
        estimate = _estimate(options, architecture, verdict.gpus, verdict.memory_gib, seen, plan, machine)
    except RequestError:
        # parts or layers that do not exist, which are among the problems
        return verdict
    if estimate.fits:
        return replace(verdict, estimate=estimate)
    needed = gpus_needed(options, architecture, estimate.memory_gib, per_node=plan.gpus_per_node, vision_tokens=seen)
    return replace(verdict, estimate=estimate, gpus_needed=needed, warnings=(_too_big(estimate, needed),))


def _too_big(estimate: Estimate, needed: int | None) -> Problem:
    advice = f"use {needed} GPUs with the right layout (--suggest --gpus {needed})" if needed else "use larger GPUs, or a smaller model"
    rule = {"needed": estimate.peak_gib, "memory": round(estimate.memory_gib, 2), "gpus_needed": needed, "advice": advice}
    return Problem("does-not-fit", rule=rule)


def _model(options: FinetuneOptions) -> tuple[Architecture | None, tuple[Problem, ...]]:
    """(architecture of the checkpoint, else of the size; problems of them)."""
    if not options.load:
        return (published(options.size) if options.size else None), ()
    try:
        architecture = architecture_of(options.load)
    except RequestError as error:
        # the layout can still be checked by the size
        return (published(options.size) if options.size else None), error.problems
    problem = size_problem(options.size, architecture, str(Path(options.load).expanduser())) if options.size else None
    return architecture, ((problem,) if problem else ())


def _processes(options: FinetuneOptions, cluster: bool) -> tuple[int, tuple[Problem, ...]]:
    """(processes of the whole run here, problems that keep them from being counted); 0: unknown."""
    if options.env == "dlc" and not cluster:
        return options.nproc or gpu_count() or model_ranks(options), ()
    try:
        nodes, each = asked_processes(options)
    except RequestError as error:
        return 0, error.problems
    return nodes * each, ()


def _estimate(
    options: FinetuneOptions, a: Architecture, gpus: int, gib: float, seen: int, plan: PlanOptions, machine: Machine | None
) -> Estimate:
    needs = flops.step_flops(options, a, seen)
    seconds = flops.step_seconds(options, a, gpus, seen, plan.mfu, plan.peak_tflops)
    step = StepEstimate(
        tflops=round(needs.model / 1e12, 3), language=round((needs.language + needs.attention) / 1e12, 3),
        vocabulary=round(needs.vocabulary / 1e12, 3), vision=round(needs.vision / 1e12, 3), recompute=round(needs.recompute / 1e12, 3),
        mfu=plan.mfu, seconds=round(seconds, 3), tokens_per_second=round(options.global_batch_size * options.seq_length / seconds, 1),
        no_cuda_graph=no_graph_because(options, a, machine if machine is not None and machine.gpus else ASSUMED_GPU),
    )  # fmt: skip
    return Estimate(tuple(memory.estimate(options, a, gpus, seen)), gib, step, round(seconds * options.train_iters / 3600, 3))
