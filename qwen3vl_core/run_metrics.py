"""The metrics of a run's rows: one table of keys, titles, units, tags and where each is shown.

Cheap to import, as the first frame of the console needs it. `docs/run-record.md` has the same table, which a test compares. To add a
metric, add a row to `METRICS`: the list of runs, the panel of numbers, the curves, the log line, the diff of two runs, TensorBoard
and the notebook take it from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from qwen3vl_core.formats import GIB
from qwen3vl_core.run_record import EVAL, TRAIN, is_number


class Metric(NamedTuple):
    """One metric: a number of a train row (and of an eval row, if `evaluated`)."""

    title: str
    """Its name in the user interface."""
    meaning: str
    unit: str = ""
    tag: str = ""
    """Its tag in TensorBoard, Weights & Biases and SwanLab: Megatron-LM's tag if it has one. Empty: not sent."""
    tag_scale: float = 1
    """Factor from the metric to the tag's value."""
    panel: str = ""
    """When the panel of numbers shows it: `always`, `measured` (if a run has it and it is not 0), or never if empty."""
    gauge: float | str = 0
    """The value of a full gauge in the panel, or the metric that this one is a share of; 0: no gauge."""
    beside: str = ""
    """The metric whose line of the panel it shares; it has a line of its own if a run lacks that metric."""
    note: str = ""
    """A word after its value in the panel."""
    format: str = ""
    """Format spec of its value; empty: as many digits as there is room for."""
    line: int = 0
    """Digits of its value in the log line of a step; 0: not in the line."""
    listed: bool = False
    """Whether the lists of runs have a column for it."""
    summary: bool = False
    """Whether `runs show` and the diff of two runs show it."""
    noisy: bool = False
    """Whether curves are smoothed; smoothing a schedule would only make it lag."""
    evaluated: bool = False
    """Whether eval rows have it too."""

    @property
    def label(self) -> str:
        """Title and unit, for an axis or a menu."""
        return f"{self.title} ({self.unit})" if self.unit and self.unit != self.title else self.title


LOSS, LR, GRAD_NORM, TOKENS_PER_SECOND, STEP_SECONDS = "loss", "lr", "grad_norm", "tokens_per_second", "step_seconds"
TOKENS, SAMPLE_COUNT, SKIPPED_COUNT, MFU, TFLOPS = "tokens", "samples", "skipped", "mfu", "tflops"
GPU_UTILISATION, GPU_WATTS, MEMORY, RESERVED = "gpu_utilisation", "gpu_watts", "memory_gib", "memory_reserved_gib"
DATA_SECONDS, FORWARD_BACKWARD_SECONDS, OPTIMIZER_SECONDS = "data_seconds", "forward_backward_seconds", "optimizer_seconds"
CHECKPOINT_SECONDS, PACKING_EFFICIENCY, LOSS_SCALE = "checkpoint_seconds", "packing_efficiency", "loss_scale"
EXPERT_LOAD, IDLE_EXPERTS = "expert_load", "idle_experts"
MOST_PATCHES, MOST_TOKENS = "most_patches", "most_tokens"

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
        "step time", "time of one step, including waiting for data", "s", tag="iteration-time", line=3, summary=True, noisy=True,
    ),
    TOKENS_PER_SECOND: Metric(
        "tokens/s", "trained tokens per second on all GPUs", "tokens/s", tag="tokens/s", panel="always", line=4, summary=True,
        noisy=True,
    ),
    MFU: Metric("MFU", "share of the GPU's peak FLOP/s", tag="mfu", panel="measured", gauge=1.0, format=".1%", line=3),
    TFLOPS: Metric("TFLOP/s", "model FLOPs per second and GPU", "TFLOP/s", tag="throughput", panel="measured", beside=MFU),
    GPU_UTILISATION: Metric(
        "GPU busy", "utilisation of rank 0's GPU, from its driver", "%", tag="gpu-utilisation", panel="measured", gauge=100.0, format=".0f",
    ),
    GPU_WATTS: Metric("GPU power", "power draw of rank 0's GPU", "W", tag="gpu-watts", panel="measured", beside=GPU_UTILISATION),
    MEMORY: Metric(
        "memory", "peak memory of tensors since the last row, highest of all GPUs", "GiB", tag="mem-max-allocated-bytes", tag_scale=GIB,
        panel="measured", format=".1f", note="peak",
    ),
    RESERVED: Metric(
        "reserved", "peak memory of the allocator since the last row, highest of all GPUs", "GiB", tag="mem-reserved-bytes", tag_scale=GIB,
    ),
    DATA_SECONDS: Metric("data wait", "wait of the step for data", "s", tag="data-time", panel="measured", gauge=STEP_SECONDS),
    FORWARD_BACKWARD_SECONDS: Metric("forward and backward", "time of forward and backward passes", "s", tag="forward-backward-time"),
    OPTIMIZER_SECONDS: Metric(
        "optimizer", "time of the optimizer step; on a GPU that of the step before", "s", tag="optimizer-time", panel="measured",
        gauge=STEP_SECONDS,
    ),
    CHECKPOINT_SECONDS: Metric("checkpoint wait", "wait of the training for checkpoints since the last row", "s", tag="checkpoint-time"),
    TOKENS: Metric("tokens", "trained tokens of the step", "tokens", evaluated=True),
    SAMPLE_COUNT: Metric("samples", "samples of the step; with packing: rows", "samples", tag="batch-size"),
    SKIPPED_COUNT: Metric(
        "skipped", "samples that could not be used since the start", "samples", tag="skipped-samples", panel="measured", summary=True,
    ),
    PACKING_EFFICIENCY: Metric("packing", "with packing: share of the positions that hold a sample's tokens", tag="packing-efficiency"),
    MOST_PATCHES: Metric(
        "most patches", "patches of the data-parallel rank with the most, over the mean of all", tag="most-patches", noisy=True,
    ),
    MOST_TOKENS: Metric(
        "most tokens", "tokens of the data-parallel rank with the most, over the mean of all", tag="most-tokens", noisy=True,
    ),
    LOSS_SCALE: Metric("loss scale", "with fp16: the loss scale", tag="loss-scale"),
    EXPERT_LOAD: Metric(
        "top expert", "with experts: tokens of the fullest expert over the mean, in the most uneven layer", "x mean", tag="expert-load",
        panel="measured", summary=True, noisy=True,
    ),
    IDLE_EXPERTS: Metric(
        "idle", "with experts: how many, of all layers, got no token in the step", "experts", tag="idle-experts", panel="measured",
        beside=EXPERT_LOAD, summary=True,
    ),
}  # fmt: skip
"""By key, in the order of all lists and menus. A row may hold metrics that are not here: they come last, under their keys."""


def key_of(kind: str, key: str) -> str:
    """The name of a series: `loss` of train rows, `eval/loss` of eval rows."""
    return key if kind == TRAIN else f"{kind}/{key}"


def title_of(name: str) -> str:
    """`grad norm` for `grad_norm`, `val loss` for `eval/loss`; for an unknown metric its key with spaces."""
    kind, stroke, key = name.rpartition("/")
    metric = METRICS.get(key)
    title = metric.title if metric else key.replace("_", " ")
    return f"val {title}" if kind == EVAL else f"{kind}{stroke}{title}"


def label_of(key: str) -> str:
    """Title and unit of a metric."""
    return METRICS[key].label if key in METRICS else title_of(key)


def is_noisy(key: str) -> bool:
    """Whether the metric's curve is smoothed."""
    return key in METRICS and METRICS[key].noisy


def in_order(keys: Iterable[str]) -> list[str]:
    """Keys of train rows in display order: those of METRICS in its order, then the others as they came."""
    present = list(dict.fromkeys(keys))
    return [key for key in METRICS if key in present] + [key for key in present if key not in METRICS]


def summary_keys(kind: str = TRAIN) -> list[str]:
    """Keys of the metrics in a summary of a run, for rows of this kind."""
    return [key for key, metric in METRICS.items() if metric.summary and (kind == TRAIN or metric.evaluated)]


def summary(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, list[Any]]]:
    """(title, value in each run) of the summary's metrics. rows: by kind, the last row of each run."""
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
    """The numbers of a train row that the lists of runs show."""
    return {key: float(row[key]) for key in listed_keys() if is_number(row.get(key))}


def scalars(kind: str, row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by tag; an eval row has Megatron-LM's tags, such as `lm loss validation`."""
    if kind not in (TRAIN, EVAL):
        return {}
    tagged = {}
    for key, metric in METRICS.items():
        value = row.get(key)
        if metric.tag and value is not None:
            tagged[metric.tag if kind == TRAIN else f"{metric.tag} validation"] = value * metric.tag_scale
    return tagged
