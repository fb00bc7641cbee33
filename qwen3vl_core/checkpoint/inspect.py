"""`qwen3vl inspect`: what a path is and what is in it. A damaged checkpoint is described as far as it can be read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from qwen3vl_core import file_digests, limits
from qwen3vl_core.checkpoint import foreign_names, lora_merge, torch_dist
from qwen3vl_core.checkpoint.hf import HFReader, is_hf_folder, pickled_weights, side_files
from qwen3vl_core.checkpoint.model_source import NOT_WEIGHTS, ModelSource, describe, listed, problems
from qwen3vl_core.checkpoint.name_map import HF_EMBEDDING, HF_OUTPUT, Experts, Layout
from qwen3vl_core.checkpoint.peft import PREFIX
from qwen3vl_core.checkpoint.peft_source import peft_targets
from qwen3vl_core.checkpoint.saved_arguments import read_arguments
from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import check_output_file, read_small, write_output
from qwen3vl_core.formats import printable, quantity
from qwen3vl_core.options import InspectOptions
from qwen3vl_core.peft_folder import WEIGHTS, is_peft_folder, read_config
from qwen3vl_core.run_record import CHECKPOINTS, ITERATION, PLAN, STATE
from qwen3vl_core.sizes import Architecture

PARTS = ("vision", "projector", "embeddings", "language", "experts")
EXPECTED_SIDE_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "generation_config.json")
_PROJECTOR = re.compile(
    r"model\.visual\.(merger|deepstack_merger_list)\.|vision_model\.(merger|projection|decoder\.(deepstack_|final_layernorm))"
)
FORMS = {"transposed": "stacked, as published", "straight": "stacked, as transformers 5 writes them", "each": "one tensor an expert"}


@dataclass
class Part:
    """Parameters and bytes of one part of the model."""

    parameters: int = 0
    bytes: int = 0


@dataclass
class InspectReport:
    """What a path holds; fields that do not apply or are unknown are None or empty."""

    path: str
    kind: str
    model: str | None = None
    tied: bool | None = None
    experts: str | None = None
    layout: str | None = None
    iteration: int | None = None
    iterations: list[int] = field(default_factory=list)
    """All iterations in the same folder."""
    parallel: str | None = None
    """The layout that wrote it."""
    dtypes: dict[str, int] = field(default_factory=dict)
    """Bytes by precision."""
    parts: dict[str, Part] = field(default_factory=dict)
    files: int = 0
    side_files: list[str] = field(default_factory=list)
    side_files_missing: list[str] = field(default_factory=list)
    optimizer_bytes: int | None = None
    adapters: dict[str, Any] | None = None
    """Of a LoRA run: rank, alpha, targets, parts, and the base model."""
    run: dict[str, Any] | None = None
    problems: list[str] = field(default_factory=list)

    def rows(self) -> list[str]:
        """The lines that are printed."""
        rows: list[tuple[str, str]] = [("kind", self.kind)]
        if self.run:
            rows.append(("run", ", ".join(f"{key} {value}" for key, value in self.run.items() if value is not None)))
        if self.model:
            rows.append(("model", self.model + ("; input and output embeddings are one matrix" if self.tied else "")))
        if self.experts:
            rows.append(("experts", self.experts))
        if self.layout:
            rows.append(("layout", self.layout))
        if self.adapters:
            targets = ", ".join(map(str, self.adapters.get("targets", ())))
            rows.append(("adapters", f"LoRA, rank {self.adapters.get('rank')}, alpha {self.adapters.get('alpha')}, of {targets}"))
            rows.append(("base model", str(self.adapters.get("base"))))
        if self.iteration is not None:
            others = [i for i in self.iterations if i != self.iteration]
            iteration = str(self.iteration) if self.iteration else torch_dist.RELEASE
            rows.append(("iteration", iteration + (f" (there are {', '.join(map(str, others))} too)" if others else "")))
        if self.parallel:
            rows.append(("written by", self.parallel))
        if self.dtypes:
            rows.append(("precision", ", ".join(f"{name} {quantity(size, 'B')}" for name, size in self.dtypes.items())))
        lines = [f"{name:10s} {value}" for name, value in rows]
        if self.parts:
            lines += ["", f"{'':10s} {'parameters':>16s} {'size':>10s}"]
            total = Part(sum(p.parameters for p in self.parts.values()), sum(p.bytes for p in self.parts.values()))
            for name, part in [*self.parts.items(), ("total", total)]:
                lines.append(f"{name:10s} {part.parameters:16,d} {quantity(part.bytes, 'B'):>10s}")
            lines.append("")
        if self.files:
            lines.append(f"{'files':10s} {self.files}")
        if self.kind != "run":
            lines.append(f"{'side files':10s} {', '.join(self.side_files) or 'none'}")
            if self.side_files_missing:
                lines.append(f"{'':10s} missing: {', '.join(self.side_files_missing)}")
        if self.optimizer_bytes is not None:
            state = f"its state is saved, {quantity(self.optimizer_bytes, 'B')}" if self.optimizer_bytes else "its state is not saved"
            lines.append(f"{'optimizer':10s} {state}")
        return lines + [f"{'PROBLEM':10s} {line}" for line in self.problems]


def part_of(name: str) -> str:
    """Which part of the model a tensor belongs to, by its Hugging Face or Megatron name."""
    if _PROJECTOR.match(name):
        return "projector"
    if name.startswith(("model.visual.", "vision_model.")):
        return "vision"
    if name in (HF_EMBEDDING, HF_OUTPUT) or re.search(r"language_model\.(embedding|output_layer)\.", name):
        return "embeddings"
    return "experts" if ".mlp.experts." in name else "language"


def _count(report: InspectReport, tensors: Iterable[tuple[str, tuple[int, ...], torch.dtype]]) -> None:
    """Add the parts' sizes and the precisions to the report. tensors: (name, shape, dtype)."""
    parts = {name: Part() for name in PARTS}
    for name, shape, dtype in tensors:
        count = math.prod(shape)
        part = parts[part_of(name)]
        part.parameters += count
        part.bytes += count * dtype.itemsize
        dtype_name = str(dtype).removeprefix("torch.")
        report.dtypes[dtype_name] = report.dtypes.get(dtype_name, 0) + count * dtype.itemsize
    report.parts = {name: part for name, part in parts.items() if part.parameters}


def _side(report: InspectReport, folder: Path) -> Architecture | None:
    """Add the side files to the report. Returns the architecture, if config.json gives one."""
    report.side_files = [file.name for file in side_files(folder)]
    report.side_files_missing = [name for name in EXPECTED_SIDE_FILES if name not in report.side_files]
    try:
        architecture = Architecture.read(folder)
    except RequestError as error:
        report.problems.append(str(error))
        return None
    report.model, report.tied = describe(architecture), architecture.tied
    return architecture


def digest_problems(folder: Path) -> list[str]:
    """A line for the first file that is not what a conversion has written, by its length, or where it is small by its content."""
    try:
        problem = file_digests.quick_problem(folder)
    except (ValueError, OSError) as error:
        problem = str(error)
    advice = f"copy or convert it again, or remove {file_digests.NAME} if it was changed on purpose"
    return [f"{folder}: {problem}; {advice}"] if problem is not None else []


def inspect_hf(folder: Path) -> InspectReport:
    """The report of a folder with safetensors."""
    report = InspectReport(str(folder), "Hugging Face model")
    reader = HFReader(folder, strict=False)
    report.problems += reader.problems or digest_problems(folder)
    report.files = len({entry.file for entry in reader.entries.values()})
    _count(report, ((name, entry.shape, entry.dtype) for name, entry in reader.entries.items()))
    architecture = _side(report, folder)
    if architecture is None:
        return report
    source = ModelSource(folder, folder, architecture, hf=reader)
    if architecture.is_moe:
        source.experts = Experts.found_in({name: entry.shape for name, entry in reader.entries.items()}, architecture)
        forms = dict.fromkeys((source.experts.gate_up, source.experts.down))
        report.experts = f"{architecture.num_experts}, {architecture.experts_per_token} a token; {' and '.join(FORMS[f] for f in forms)}"
    report.problems += problems(source)
    return report


def _written_by(data: Path, reader: torch_dist.RegionReader | None) -> str | None:
    """The parallel layout in the saved arguments, where it is noted."""
    args = read_arguments(data, reader)
    names = {"TP": "tensor_model_parallel_size", "PP": "pipeline_model_parallel_size", "VP": "virtual_pipeline_model_parallel_size",
             "CP": "context_parallel_size", "EP": "expert_model_parallel_size", "ETP": "expert_tensor_parallel_size"}  # fmt: skip
    sizes = {short: args.get(name) for short, name in names.items()}
    if not args.get("num_experts"):
        sizes |= {"EP": None, "ETP": None}
    return " ".join(f"{short} {size}" for short, size in sizes.items() if isinstance(size, int)) or None


def inspect_megatron(path: Path, checkpoint: torch_dist.Checkpoint, base: str | None = None) -> InspectReport:
    """The report of a checkpoint, from a conversion or from a run."""
    report = InspectReport(str(path), "Megatron checkpoint (torch_dist)", iteration=checkpoint.iteration)
    matches = (re.fullmatch(rf"{ITERATION}(\d{{7,}})", folder.name) for folder in checkpoint.root.iterdir())
    report.iterations = sorted(int(match[1]) for match in matches if match)
    architecture = _side(report, checkpoint.root)
    report.problems += digest_problems(checkpoint.root) if checkpoint.root != checkpoint.data else []
    reader = None
    try:
        reader = torch_dist.RegionReader(checkpoint.data)
    except RequestError as error:
        report.problems.append(str(error))
    try:
        report.parallel = _written_by(checkpoint.data, reader)
    except RequestError as error:
        report.problems.append(str(error))
    if reader is None:
        return report
    report.files = len(list(checkpoint.data.glob("*.distcp")))
    saved = reader.tensors
    if architecture is not None:
        reader.rewrite(architecture)
    weights = {key: item for key, item in reader.tensors.items() if not key.startswith(NOT_WEIGHTS) and not key.endswith("_extra_state")}
    _count(report, ((key, tuple(item.size), item.properties.dtype) for key, item in weights.items()))
    state = [item for key, item in reader.tensors.items() if key.startswith(("optimizer", "chained_"))]
    report.optimizer_bytes = sum(math.prod(item.size) * item.properties.dtype.itemsize for item in state)
    report.adapters = lora_merge.read_adapter_note(checkpoint.data)
    if report.adapters is not None:
        report.kind = "adapters of a LoRA run (torch_dist)"
        try:
            open_source(checkpoint.data if checkpoint.root == checkpoint.data else checkpoint.root, base=base).check()
        except RequestError as error:
            report.problems.append(str(error))
        return report
    try:
        layout = Layout.found_in(reader.tensors, str(path))
    except RequestError as error:
        report.problems.append(str(error))
        return report
    report.layout = foreign_names.described(saved)
    if architecture is None:
        report.problems += reader.damage()
        return report
    if architecture.is_moe:
        report.experts = f"{architecture.num_experts}, {architecture.experts_per_token} a token"
    report.problems += problems(ModelSource(path, checkpoint.root, architecture, megatron=reader, layout=layout))
    return report


def inspect_peft(folder: Path, base: str | None = None) -> InspectReport:
    """The folder of a PEFT adapter."""
    report = InspectReport(str(folder), "PEFT adapter")
    report.side_files = [file.name for file in side_files(folder)]
    try:
        config = read_config(folder)
        report.adapters = {"rank": config.get("r"), "alpha": config.get("lora_alpha"), "targets": peft_targets(config),
                          "base": config.get("base_model_name_or_path")}  # fmt: skip
        entries = HFReader(folder, pattern=WEIGHTS).entries
        report.files = len({entry.file for entry in entries.values()})
        _count(report, ((name.removeprefix(PREFIX), entry.shape, entry.dtype) for name, entry in entries.items()))
        source = open_source(folder, base=base)
        report.model, report.tied = describe(source.architecture), source.architecture.tied
        source.check()
    except RequestError as error:
        report.problems.append(str(error))
    return report


def _json_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_small(file, limits.RUN_JSON))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def inspect_run(folder: Path, base: str | None = None) -> InspectReport:
    """The report of a run's folder, with its last checkpoint."""
    plan, state = _json_object(folder / PLAN), _json_object(folder / STATE)
    run = {"kind": plan.get("kind"), "name": plan.get("name"), "status": state.get("status"), "exit code": state.get("exit_code")}
    checkpoints = folder / CHECKPOINTS
    if not checkpoints.is_dir() or not any(checkpoints.iterdir()):
        return InspectReport(str(folder), "run", run=run | {"checkpoints": "none"})
    report = inspect_checkpoint(checkpoints, base) or InspectReport(str(folder), "run", problems=[f"{checkpoints}: no checkpoint in it"])
    report.path, report.kind, report.run = str(folder), f"run; its last checkpoint: {report.kind}", run
    return report


def inspect_checkpoint(path: Path, base: str | None = None) -> InspectReport | None:
    """The report of a Megatron checkpoint, or of a tracker whose checkpoint is missing; None where there is neither."""
    try:
        checkpoint = torch_dist.find(path)
    except RequestError as error:
        report = InspectReport(str(path), "Megatron checkpoint (torch_dist)", problems=[str(error)])
        _side(report, path)
        return report
    return inspect_megatron(path, checkpoint, base) if checkpoint else None


def inspect(path: Path, base: str | None = None) -> InspectReport:
    """The report of a model, a checkpoint or a run. base: of adapters, if it was moved. Raises RequestError for a path that holds none."""
    if not path.exists():
        raise RequestError(f"{path}: no such file or folder; give a model, a checkpoint, a run or a dataset")
    if not path.is_dir():
        raise RequestError(f"{path}: a file; give the folder that it is in")
    if (path / PLAN).is_file():
        return inspect_run(path, base)
    report = inspect_checkpoint(path, base)
    if report:
        return report
    if is_peft_folder(path):
        return inspect_peft(path, base)
    if is_hf_folder(path):
        return inspect_hf(path)
    pickles = pickled_weights(path)
    if pickles:
        line = f"{path}: {listed(pickles)} can run programs and are never opened; get the model as safetensors"
        return InspectReport(str(path), "folder of pickled weights", side_files=[f.name for f in side_files(path)], problems=[line])
    names = sorted(p.name for p in path.iterdir())
    raise RequestError(f"{path}: no model, checkpoint, run or dataset; it holds {listed(names) if names else 'nothing'}")


def run(options: InspectOptions) -> None:
    """Print what a path holds. Raises RequestError for an unknown kind of path, WorkError when it has problems."""
    path = Path(options.path).expanduser()
    file = check_output_file("--json", options.json)
    report = inspect(path, options.base)
    if file:
        write_output(file, json.dumps({"v": 1} | asdict(report), indent=2) + "\n")
    print(printable("\n".join(report.rows())))
    if report.problems:
        count = len(report.problems)
        raise WorkError(f"{path}: {count} problem{'s' if count > 1 else ''}, listed above")
