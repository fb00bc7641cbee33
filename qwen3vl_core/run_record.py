"""The record of a run: its files, their rows, the metrics, and its version. Writers and readers take all names from here.

Cheap to import: the first frame of the console needs it. `docs/run-record.md` describes the same tables, and a test keeps the
two in step. A metric is added by one row of `METRICS`: the list of runs, the panel of numbers, the curves, the log
line, the diff of two runs, TensorBoard and the notebook take it from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from qwen3vl_core.formats import GIB

VERSION = 1
"""Of everything a run writes (`v`). It grows only when the meaning of a field changes; a field that is new does not change it."""
STARTED_VARIABLE = "QWEN3VL_STARTED"
"""Environment variable with the monotonic clock's seconds when the supervisor began: --stop-after counts from there."""
RUN_VARIABLE = "QWEN3VL_RUN_DIR"
"""Environment variable by which the processes of a run know its folder."""

# files and folders of a run

PLAN, COMMAND, STATE, LOG = "plan.json", "command.sh", "state.json", "output.log"
HEARTBEAT, LOCK, TRAINING_LOCK, STOP, SAVE = "heartbeat", "lock", "training.lock", "stop", "save"
METRICS_FILE, SAMPLES, SKIPPED = "metrics.jsonl", "samples.jsonl", "skipped.jsonl"
COMPARISON, VOTES = "comparison.json", "votes.json"
CAPTIONS_PAGE, CAPTIONS_DATA = "captions.html", "captions.json"
CHECKPOINTS, TENSORBOARD, WANDB, SWANLAB = "checkpoints", "tensorboard", "wandb", "swanlab"
TRACKER, ITERATION = "latest_checkpointed_iteration.txt", "iter_"
"""Megatron's names inside a folder of checkpoints: the file that names the last one, and the prefix of each one's folder."""

FILES = {
    PLAN: "what the run is to do: kind, name, options, command, versions; written before it starts",
    COMMAND: "the same command as a shell script, to run by hand",
    STATE: "how it stands; only the supervisor writes it, and always whole",
    LOG: "all that its processes print",
    HEARTBEAT: "empty; its time is the supervisor's last sign of life",
    LOCK: "held by the supervisor as long as it lives",
    TRAINING_LOCK: "held by the first rank of a training as long as it lives",
    STOP: "asks the supervisor to stop the run; empty, or the seconds until SIGKILL",
    SAVE: "empty; asks the supervisor for a checkpoint of a finetune",
    METRICS_FILE: "a finetune's metrics and events, one JSON object a line",
    SAMPLES: "captions, one JSON object a line: of a finetune while it learns, of a compare run as they are written",
    SKIPPED: "training samples that could not be used, one JSON object a line",
    COMPARISON: "what a compare run compares; written before its first caption",
    VOTES: "votes for the captions of a compare run",
    CAPTIONS_PAGE: "captions, scores and votes of a compare run as a page, where it was asked for",
    CAPTIONS_DATA: "the same as JSON",
    CHECKPOINTS: "folder: a finetune's checkpoints in Megatron's torch_dist format",
    TENSORBOARD: "folder: the scalars of metrics.jsonl as TensorBoard events",
    WANDB: "folder: what the client of Weights & Biases keeps",
    SWANLAB: "folder: what the client of SwanLab keeps",
}


def skipped_file(rank: int) -> str:
    """The file of one data-parallel rank: `skipped.jsonl` of the first, `skipped-3.jsonl` of another."""
    return SKIPPED if rank == 0 else SKIPPED.replace(".", f"-{rank}.")


def checkpoint_step(folder: str) -> int | None:
    """The step of a checkpoint by the name of its folder, `iter_0000500`; None for another name."""
    digits = folder.removeprefix(ITERATION)
    return int(digits) if digits != folder and digits.isdecimal() else None


# rows

TRAIN, EVAL, EVENT = "train", "eval", "event"


class Field(NamedTuple):
    """One field of a row or of a JSON file."""

    type: str
    """As JSON has it; `| null` where it may be null, `?` at the end where it may be missing."""
    meaning: str


PLAN_FIELDS = {
    "v": Field("integer", "version of the record"),
    "kind": Field("string", "finetune, prepare, convert or compare"),
    "name": Field("string", "for people; several runs may share it"),
    "options": Field("object", "every option of the command by name"),
    "command": Field("list of strings", "words of the command that does the work"),
    "cwd": Field("string", "folder it runs in"),
    "versions": Field("object", "of Python and the packages, as installed"),
    "git": Field("string | null", "commit of the source tree; `-dirty` behind it when tracked files differ"),
    "host": Field("string", "machine it was made on"),
    "cpus": Field("integer", "processors of that machine it may use"),
    "gpus": Field("integer", "GPUs of that machine it may use"),
    "created": Field("number", "Unix seconds"),
}


class PlanRecord(TypedDict, total=False):
    """plan.json with the keys of PLAN_FIELDS, so that a type checker knows them; a damaged file may hold anything."""

    v: int
    kind: str
    name: str
    options: dict[str, Any]
    command: list[str]
    cwd: str
    versions: dict[str, str]
    git: str | None
    host: str
    cpus: int
    gpus: int
    created: float


STATE_FIELDS = {
    "status": Field("string", "starting, running, stopping, done, failed or stopped"),
    "supervisor_pid": Field("integer | null", "process of the supervisor"),
    "pid": Field("integer | null", "process of the command"),
    "host": Field("string", "machine it runs on"),
    "boot_id": Field("string", "boot of that machine's kernel; empty where it has none"),
    "exit_code": Field("integer | null", "of the command; 128 + signal where one ended it; null before its end"),
    "started": Field("number | null", "Unix seconds of the latest start"),
    "ended": Field("number | null", "Unix seconds of the end"),
    "error": Field("string | null", "why it failed, in one line, where that is known beyond the log"),
    "restarts": Field("integer", "how often the supervisor has started the command again since the latest start"),
}


class StateRecord(TypedDict, total=False):
    """state.json with the keys of STATE_FIELDS, so that a type checker knows them; a damaged file may hold anything."""

    status: str
    supervisor_pid: int | None
    pid: int | None
    host: str
    boot_id: str
    exit_code: int | None
    started: float | None
    ended: float | None
    error: str | None
    restarts: int


ROW_FIELDS = {
    "v": Field("integer", "version of the record"),
    "step": Field("integer", "steps done, this one included"),
    "time": Field("number", "Unix seconds"),
    "kind": Field("string", "train, eval or event"),
}
"""Of every row of metrics.jsonl; a train or eval row has metrics beside them."""
EVENT_FIELDS = {
    "event": Field("string", "kind of event"),
    "text": Field("string", "one line for people"),
    "train_iters": Field("integer?", "start, resume: steps of the whole run"),
    "path": Field("string?", "save: folder of the checkpoint"),
    "seconds": Field("number?", "save: from the beginning until it was on the disk"),
    "waited_seconds": Field("number?", "save: how long training waited"),
    "removed": Field("list of strings?", "save: checkpoints that were removed"),
    "keys": Field("list of strings?", "nan, spike: samples of the step"),
    "loss": Field("number | null?", "nan, spike: loss of the step; null: not finite"),
    "grad_norm": Field("number | null?", "nan, spike: gradient norm of the step; null: not finite, or not computed"),
    "updated": Field("boolean?", "nan, spike: whether the weights were updated"),
    "in_a_row": Field("integer?", "nan, spike: bad steps in a row"),
}
SAMPLE_FIELDS = {
    "v": Field("integer", "version of the record"),
    "step": Field("integer?", "of a finetune: steps done"),
    "image": Field("string", "the picture, by its path or its name in a dataset"),
    "prompt": Field("string", "what was asked"),
    "model": Field("string", "name of the model; `tuned` in a finetune"),
    "text": Field("string", "the caption as far as it is written"),
    "seconds": Field("number", "that it took"),
    "done": Field("boolean", "whether it is at its end; a later row of the same picture and model replaces this one"),
    "whole": Field("boolean?", "false: cut off at the longest length"),
}
COMPARISON_FIELDS = {
    "v": Field("integer", "version of the record"),
    "prompt": Field("string", "what every picture was asked"),
    "models": Field("object", "name -> {path, size}, `base` first"),
    "sampling": Field("object", "how tokens were chosen"),
    "notes": Field("list of strings", "remarks about the comparison"),
    "pictures": Field("list of objects", "{image, references}, in order"),
}
VOTES_FIELDS = {
    "v": Field("integer", "version of the record"),
    "votes": Field("object", "picture -> name of a model, or `same`"),
    "blind": Field("list of strings?", "pictures whose vote was given without seeing which model wrote what"),
}
SKIPPED_FIELDS = {
    "key": Field("string", "of the sample in its shard"),
    "reason": Field("string", "why it could not be used, in a word that repeats"),
    "detail": Field("string", "the same in full"),
    "shard": Field("string", "file that it is in"),
    "code": Field("string?", "the rule that it breaks, finer than the reason"),
}
START, RESUME, RESTART, DAMAGED, NOTE, SAVED = "start", "resume", "restart", "damaged", "note", "save"
NAN, SPIKE, STOPPED, DONE = "nan", "spike", "stop", "done"
EVENTS = {
    START: "the first step is about to begin",
    RESUME: "training goes on from a checkpoint; rows of later steps that are there already are replaced by those that follow",
    RESTART: "a failed attempt is started again by the supervisor, which writes this row while nothing else does; why is in its text",
    DAMAGED: "a checkpoint could not be read; the one before it is used",
    NOTE: "something that people should know",
    SAVED: "a checkpoint is on the disk",
    NAN: "a loss or a gradient norm was not finite; step skipped, weights unchanged",
    SPIKE: "a loss was far above those of the last steps",
    STOPPED: "stopped in good order before the last step",
    DONE: "the last step is done",
}
BAD_EVENTS = (RESTART, DAMAGED, NAN, SPIKE)
"""Events that are worth a warning sign."""


class SampleRow(NamedTuple):
    """One row of samples.jsonl as a reader takes it, whatever is missing in it."""

    image: str
    text: str
    model: str
    """Empty where the row does not say."""
    prompt: str | None
    step: int | None
    seconds: float | None
    done: bool
    whole: bool


def sample_row(
    image: str, prompt: str, model: str, text: str, seconds: float, *, step: int | None = None, done: bool = True, whole: bool = True
) -> dict[str, Any]:  # fmt: skip
    """A row of samples.jsonl. whole: False for a caption that was cut off at the longest length."""
    return {
        "v": VERSION, **({} if step is None else {"step": step}), "image": image, "prompt": prompt, "model": model, "text": text,
        "seconds": round(seconds, 3), "done": done, **({} if whole or not done else {"whole": False}),
    }  # fmt: skip


def read_sample(row: Mapping[str, Any]) -> SampleRow | None:
    """A row of samples.jsonl; None for one that has no picture or no text."""
    image, text, model, prompt, step = (row.get(key) for key in ("image", "text", "model", "prompt", "step"))
    if not isinstance(image, str) or not isinstance(text, str):
        return None
    return SampleRow(
        image, text, model if isinstance(model, str) else "", prompt if isinstance(prompt, str) else None,
        step if isinstance(step, int) and not isinstance(step, bool) else None, finite(row.get("seconds")),
        row.get("done") is not False, row.get("whole") is not False,
    )  # fmt: skip


# metrics


class Metric(NamedTuple):
    """One number of a train row (and of an eval row, where `evaluated`)."""

    title: str
    """Its name wherever people read it."""
    meaning: str
    unit: str = ""
    tag: str = ""
    """In TensorBoard, Weights & Biases and SwanLab: Megatron-LM's tag where it has one. Empty: not sent."""
    tag_scale: float = 1
    """The tag's value is the metric times this."""
    panel: str = ""
    """In the panel of numbers: `always`, `measured` (where a run has it and it is not 0), or not at all."""
    gauge: float | str = 0
    """The value of a full gauge in the panel, or the metric that this one is a share of; 0: no gauge."""
    beside: str = ""
    """The metric in whose line of the panel it stands; a line of its own where a run lacks that one."""
    note: str = ""
    """Beside its value in the panel."""
    format: str = ""
    """Of its value; empty: as many digits as there is room for."""
    line: int = 0
    """Digits of its value in the log line of a step; 0: not in the line."""
    listed: bool = False
    """Whether it has a column in the lists of runs."""
    summary: bool = False
    """Whether `runs show` and the diff of two runs name it."""
    noisy: bool = False
    """Whether smoothing makes it clearer; an average of a schedule would only lag behind it."""
    evaluated: bool = False
    """Whether eval rows have it, too."""

    @property
    def label(self) -> str:
        """Title and unit, for an axis or a menu."""
        return f"{self.title} ({self.unit})" if self.unit and self.unit != self.title else self.title


LOSS, LR, GRAD_NORM, TOKENS_PER_SECOND, STEP_SECONDS = "loss", "lr", "grad_norm", "tokens_per_second", "step_seconds"
TOKENS, SAMPLE_COUNT, SKIPPED_COUNT, MFU, TFLOPS = "tokens", "samples", "skipped", "mfu", "tflops"
GPU_UTILISATION, GPU_WATTS, MEMORY, RESERVED = "gpu_utilisation", "gpu_watts", "memory_gib", "memory_reserved_gib"
DATA_SECONDS, FORWARD_BACKWARD_SECONDS, OPTIMIZER_SECONDS = "data_seconds", "forward_backward_seconds", "optimizer_seconds"
CHECKPOINT_SECONDS, PACKING_EFFICIENCY, LOSS_SCALE = "checkpoint_seconds", "packing_efficiency", "loss_scale"

METRICS: dict[str, Metric] = {
    LOSS: Metric(
        "loss", "mean over the trained tokens of the step", tag="lm loss", panel="always", line=5, listed=True, summary=True,
        noisy=True, evaluated=True,
    ),
    LR: Metric("lr", "learning rate of the step", tag="learning-rate", panel="always", line=3, summary=True),
    GRAD_NORM: Metric(
        "grad norm", "norm of the gradient before clipping", tag="grad-norm", panel="always", line=3, summary=True, noisy=True,
    ),
    STEP_SECONDS: Metric(
        "step time", "of one step, data included", "s", tag="iteration-time", line=3, summary=True, noisy=True,
    ),
    TOKENS_PER_SECOND: Metric(
        "tokens/s", "trained tokens a second, all GPUs together", "tokens/s", tag="tokens/s", panel="always", line=4, summary=True,
        noisy=True,
    ),
    MFU: Metric("MFU", "share of the GPU's peak FLOP/s", tag="mfu", panel="measured", gauge=1.0, format=".1%", line=3),
    TFLOPS: Metric("TFLOP/s", "model FLOPs a second of one GPU", "TFLOP/s", tag="throughput", panel="measured", beside=MFU),
    GPU_UTILISATION: Metric(
        "GPU busy", "as the driver of the first rank's GPU says", "%", tag="gpu-utilisation", panel="measured", gauge=100.0, format=".0f",
    ),
    GPU_WATTS: Metric("GPU power", "of the first rank's GPU", "W", tag="gpu-watts", panel="measured", beside=GPU_UTILISATION),
    MEMORY: Metric(
        "memory", "most that tensors took on any GPU since the last row", "GiB", tag="mem-max-allocated-bytes", tag_scale=GIB,
        panel="measured", format=".1f", note="peak",
    ),
    RESERVED: Metric(
        "reserved", "most that the allocator took on any GPU since the last row", "GiB", tag="mem-reserved-bytes", tag_scale=GIB,
    ),
    DATA_SECONDS: Metric("data wait", "that the step waited for its data", "s", tag="data-time", panel="measured", gauge=STEP_SECONDS),
    FORWARD_BACKWARD_SECONDS: Metric("forward and backward", "part of the step", "s", tag="forward-backward-time"),
    OPTIMIZER_SECONDS: Metric("optimizer", "part of the step", "s", tag="optimizer-time"),
    CHECKPOINT_SECONDS: Metric("checkpoint wait", "that training waited for checkpoints since the last row", "s", tag="checkpoint-time"),
    TOKENS: Metric("tokens", "trained tokens of the step", "tokens", evaluated=True),
    SAMPLE_COUNT: Metric("samples", "samples of the step; rows with packing", "samples", tag="batch-size"),
    SKIPPED_COUNT: Metric(
        "skipped", "samples that could not be used, since the start", "samples", tag="skipped-samples", panel="measured", summary=True,
    ),
    PACKING_EFFICIENCY: Metric("packing", "share of the positions that hold a sample, with packing", tag="packing-efficiency"),
    LOSS_SCALE: Metric("loss scale", "with fp16", tag="loss-scale"),
}  # fmt: skip
"""By key, in the order in which they are offered everywhere. A row may hold metrics that are not here: they follow under their keys."""


def key_of(kind: str, key: str) -> str:
    """The name of a series: `loss` of train rows, `eval/loss` of eval rows."""
    return key if kind == TRAIN else f"{kind}/{key}"


def title_of(name: str) -> str:
    """`grad norm` for `grad_norm`, `val loss` for `eval/loss`; an unknown one's own name in words."""
    kind, stroke, key = name.rpartition("/")
    metric = METRICS.get(key)
    title = metric.title if metric else key.replace("_", " ")
    return f"val {title}" if kind == EVAL else f"{kind}{stroke}{title}"


def label_of(key: str) -> str:
    """Title and unit."""
    return METRICS[key].label if key in METRICS else title_of(key)


def is_noisy(key: str) -> bool:
    """Whether the metric is smoothed."""
    return key in METRICS and METRICS[key].noisy


def in_order(keys: Iterable[str]) -> list[str]:
    """Keys of train rows as they are offered: those of the table in its order, then the others as they came."""
    present = list(dict.fromkeys(keys))
    return [key for key in METRICS if key in present] + [key for key in present if key not in METRICS]


def summary_keys(kind: str = TRAIN) -> list[str]:
    """Keys of the metrics that a summary of a run names, of rows of this kind."""
    return [key for key, metric in METRICS.items() if metric.summary and (kind == TRAIN or metric.evaluated)]


def summary(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, list[Any]]]:
    """(title, value in each run) of the metrics to set side by side. rows: by kind, the last row of each run."""
    pairs = []
    for kind, last in rows.items():
        for key in summary_keys(kind):
            if any(key in row for row in last):
                pairs.append((title_of(key_of(kind, key)), [row.get(key) for row in last]))
    return pairs


def listed_keys() -> list[str]:
    """Keys of the metrics that have a column in the lists of runs."""
    return [key for key, metric in METRICS.items() if metric.listed]


def listed(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that the lists of runs show, of those that a train row has."""
    return {key: float(row[key]) for key in listed_keys() if is_number(row.get(key))}


def scalars(kind: str, row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by tag; those of an evaluation as Megatron-LM has them, `lm loss validation`."""
    if kind not in (TRAIN, EVAL):
        return {}
    tagged = {}
    for key, metric in METRICS.items():
        value = row.get(key)
        if metric.tag and value is not None:
            tagged[metric.tag if kind == TRAIN else f"{metric.tag} validation"] = value * metric.tag_scale
    return tagged


def is_number(value: Any) -> bool:
    """Whether a field holds a number, finite or not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(value: Any) -> float | None:
    """A measured number as a float; None for anything else, and for NaN and infinity."""
    return float(value) if is_number(value) and math.isfinite(value) else None


def version_problem(record: Mapping[str, Any]) -> str:
    """One line for a plan or a row that a newer version of this program wrote; empty for one that this version knows."""
    version = record.get("v")
    if isinstance(version, int) and version > VERSION:
        return f"its record is of version {version}, and this qwen3vl knows versions up to {VERSION}; upgrade qwen3vl"
    return ""
