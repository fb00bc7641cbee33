"""The record of a run: its files, their fields and the version. Writers and readers take all names from here; the metrics of its rows
are in `run_metrics.py`.

Cheap to import, as the first frame of the console needs it. `docs/run-record.md` has the same tables, which a test compares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

VERSION = 1
"""Version of everything that a run writes (`v`). It grows when the meaning of a field changes, not when a field is added."""
STARTED_VARIABLE = "QWEN3VL_STARTED"
"""Environment variable with the monotonic time at which the supervisor started: --stop-after counts from there."""
TORCHRUN = "qwen3vl_core.training.torchrun"
TORCHRUNS = (TORCHRUN, "torch.distributed.run")
"""Modules that start the ranks of a training: the one that commands have now, and that of plans of older versions."""
RUN_VARIABLE = "QWEN3VL_RUN_DIR"
"""Environment variable that tells the processes of a run its folder."""

# files and folders of a run

PLAN, COMMAND, STATE, LOG = "plan.json", "command.sh", "state.json", "output.log"
HEARTBEAT, LOCK, TRAINING_LOCK, STOP, SAVE = "heartbeat", "lock", "training.lock", "stop", "save"
RESERVE, OLD_LOG, CHECK, NODES = "reserve", "output.log.1", "check.json", "nodes.json"
HELPERS, MIRROR = "helpers", "mirror.json"
METRICS_FILE, SAMPLES, SKIPPED = "metrics.jsonl", "samples.jsonl", "skipped.jsonl"
RANKS = "ranks"
QUEUE, QUEUE_LOCK = "queue.json", "queue.lock"
"""Files of the store, beside the runs: the order of the runs that wait for GPUs, and the lock under which they are chosen."""
PROFILE = "profile.json"
COMPARISON, VOTES = "comparison.json", "votes.json"
CAPTIONS_PAGE, CAPTIONS_DATA = "captions.html", "captions.json"
CHECKPOINTS, TENSORBOARD, WANDB, SWANLAB = "checkpoints", "tensorboard", "wandb", "swanlab"
TRACKER, ITERATION = "latest_checkpointed_iteration.txt", "iter_"
"""Megatron's names inside a folder of checkpoints: the tracker, which names the last one, and the prefix of each checkpoint's folder."""

FILES = {
    PLAN: "the request: kind, name, options, command, versions; written before the run starts",
    COMMAND: "the command as a shell script, to run by hand",
    STATE: "the status; written by the supervisor only, atomically",
    LOG: "the output of its processes",
    OLD_LOG: "the part of it before, of a log that grew too long",
    HEARTBEAT: "empty; the supervisor updates its modification time while it is alive",
    LOCK: "locked by the supervisor while it is alive",
    TRAINING_LOCK: "locked by rank 0 of the training while it is alive",
    RESERVE: "some bytes that the supervisor gives free to write the last state on a full disk",
    CHECK: "of a check in the background: how far it is, and what it has found",
    NODES: "of a training on several machines: which of them still answer",
    HELPERS: "locked while messages about the run are being sent, or its checkpoints copied to its mirror",
    MIRROR: "of a run with a mirror: the result of the last copy",
    STOP: "asks the supervisor to stop the run; empty, or the seconds until SIGKILL",
    SAVE: "empty; asks the supervisor of a finetune to save a checkpoint",
    METRICS_FILE: "metrics and events of a finetune, one JSON object per line",
    SAMPLES: "captions, one JSON object per line: sample captions of a finetune, or the captions of a compare run",
    RANKS: "folder: a file for each rank of a training, `0.json`, `1.json`, …: where it stands",
    SKIPPED: "training samples that could not be used, one JSON object per line",
    PROFILE: "kernels of a few steps, if QWEN3VL_PROFILE_STEPS asks for them: milliseconds and launches per step",
    COMPARISON: "the models and pictures of a compare run; written before its first caption",
    VOTES: "votes for the captions of a compare run",
    CAPTIONS_PAGE: "captions, scores and votes of a compare run as an HTML page, if requested",
    CAPTIONS_DATA: "the same as JSON",
    CHECKPOINTS: "folder: the checkpoints of a finetune in Megatron's torch_dist format",
    TENSORBOARD: "folder: the scalars of metrics.jsonl as TensorBoard events",
    WANDB: "folder: files of the Weights & Biases client",
    SWANLAB: "folder: files of the SwanLab client",
}


def rank_file(rank: int) -> str:
    """The file of one rank in the folder `ranks`."""
    return f"{rank}.json"


def skipped_file(rank: int) -> str:
    """The file of one data-parallel rank: `skipped.jsonl` for the first, `skipped-3.jsonl` for another."""
    return SKIPPED if rank == 0 else SKIPPED.replace(".", f"-{rank}.")


def node_text(entry: Mapping[str, Any]) -> str:
    """`node 1 (host, ranks 8 to 15) has not answered for 40 s: …`, of an entry of nodes.json."""
    first, count, quiet = entry.get("first_rank"), entry.get("ranks"), entry.get("quiet")
    ranks = f"ranks {first} to {first + count - 1}" if isinstance(first, int) and isinstance(count, int) and count else "no rank of it yet"
    since = f"{quiet:.0f}" if isinstance(quiet, int | float) else "?"
    who = f"node {entry.get('node')} ({entry.get('host') or 'unknown host'}, {ranks})"
    return f"{who} has not answered for {since} s: its machine or network is down, or its processes are stopped or killed"


def checkpoint_step(folder: str) -> int | None:
    """The step of a checkpoint by the name of its folder, `iter_0000500`; None for another name."""
    digits = folder.removeprefix(ITERATION)
    return int(digits) if digits != folder and digits.isdecimal() else None


# rows

TRAIN, EVAL, EVENT = "train", "eval", "event"


class Field(NamedTuple):
    """One field of a row or of a JSON file."""

    type: str
    """JSON type; with `| null` if it may be null, with `?` at the end if it may be missing."""
    meaning: str


PLAN_FIELDS = {
    "v": Field("integer", "version of the record"),
    "kind": Field("string", "finetune, prepare, convert or compare"),
    "name": Field("string", "for people; several runs may share it"),
    "options": Field("object", "every option of the command, by name"),
    "command": Field("list of strings", "the command that does the work, as a list of words"),
    "cwd": Field("string", "working directory of the command"),
    "versions": Field("object", "installed versions of Python and the packages"),
    "git": Field("string | null", "commit of the source tree, with `-dirty` appended when tracked files differ"),
    "host": Field("string", "machine on which the plan was written"),
    "cpus": Field("integer", "CPUs of that machine that the run may use"),
    "gpus": Field("integer", "GPUs of that machine that the run may use"),
    "created": Field("number", "Unix seconds"),
    "changed": Field("list of objects", "each resume with other options: `time`, Unix seconds, and `options`, name to [before, after]"),
}


class PlanRecord(TypedDict, total=False):
    """plan.json with the keys of PLAN_FIELDS, for the type checker; a damaged file may hold anything."""

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
    changed: list[dict[str, Any]]


STATE_FIELDS = {
    "status": Field("string", "queued, starting, running, stopping, done, failed or stopped"),
    "supervisor_pid": Field("integer | null", "process id of the supervisor"),
    "supervisor_start": Field("integer | null", "when that process started, in clock ticks since boot"),
    "pid": Field("integer | null", "process id of the command"),
    "host": Field("string", "machine on which the run runs"),
    "boot_id": Field("string", "boot id of that machine's kernel; empty if unknown"),
    "exit_code": Field("integer | null", "exit code of the command, or 128 + signal; null before its end"),
    "started": Field("number | null", "time of the latest start, in Unix seconds"),
    "ended": Field("number | null", "time of the end, in Unix seconds"),
    "error": Field("string | null", "why it failed, in one line, if the log does not say so"),
    "stalled": Field("string | null", "while no step comes any more: since when, and which rank is behind"),
    "restarts": Field("integer", "how often the supervisor has restarted the command since the latest start"),
    "mirror": Field("string | null", "why the last copy of a checkpoint to the mirror failed"),
    "gpus": Field("list of strings | null", "GPUs that it holds, or while queued waits for, as nvidia-smi numbers them"),
    "any_gpus": Field("integer | null", "while queued with --gpu-ids free: how many GPUs it waits for"),
    "queued": Field("number | null", "time at which it was queued before the latest start, in Unix seconds"),
}


QUEUED = "queued"
"""Waits for GPUs. A queued run without a supervisor stays queued: another supervisor, or a command, lets it go on."""
HOLDING = ("starting", "running", "stopping")
"""The statuses in which a run holds its GPUs."""
ALIVE, ENDED = (QUEUED, *HOLDING), ("done", "failed", "stopped")
"""The statuses in state.json. A run that holds GPUs by its state but has no supervisor is shown as `lost`, which is in no file."""


class StateRecord(TypedDict, total=False):
    """state.json with the keys of STATE_FIELDS, for the type checker; a damaged file may hold anything."""

    status: str
    supervisor_pid: int | None
    supervisor_start: int | None
    pid: int | None
    host: str
    boot_id: str
    exit_code: int | None
    started: float | None
    ended: float | None
    error: str | None
    stalled: str | None
    restarts: int
    mirror: str | None
    gpus: list[str] | None
    any_gpus: int | None
    queued: float | None


ROW_FIELDS = {
    "v": Field("integer", "version of the record"),
    "step": Field("integer", "number of steps done, including this one"),
    "time": Field("number", "Unix seconds"),
    "kind": Field("string", "train, eval or event"),
}
"""Fields of every row of metrics.jsonl; train and eval rows have metrics in addition."""
EVENT_FIELDS = {
    "event": Field("string", "kind of event"),
    "text": Field("string", "one line for people"),
    "train_iters": Field("integer?", "start, resume: steps of the whole run"),
    "path": Field("string?", "save: folder of the checkpoint"),
    "seconds": Field("number?", "save: from the start until the checkpoint was on disk"),
    "waited_seconds": Field("number?", "save: how long training waited"),
    "digest_seconds": Field("number?", "save: how long the digests of rank 0's files took; with --async-save training went on meanwhile"),
    "removed": Field("list of integers?", "save: steps of the checkpoints that were removed"),
    "keys": Field("list of strings?", "nan, spike: keys of the step's samples"),
    "loss": Field("number | null?", "nan, spike: loss of the step; null if not finite"),
    "grad_norm": Field("number | null?", "nan, spike: gradient norm of the step; null if not finite or not computed"),
    "updated": Field("boolean?", "nan, spike: whether the weights were updated"),
    "in_a_row": Field("integer?", "nan, spike: number of skipped steps in a row"),
}
SAMPLE_FIELDS = {
    "v": Field("integer", "version of the record"),
    "step": Field("integer?", "finetune: number of steps done"),
    "image": Field("string", "path of the picture, or its name in the dataset"),
    "prompt": Field("string", "the prompt"),
    "model": Field("string", "name of the model; `tuned` for a finetune"),
    "text": Field("string", "the caption, or its beginning if it is not done"),
    "seconds": Field("number", "time that the caption took; that of a batch is divided among its captions"),
    "done": Field("boolean", "whether the caption is finished; a later row of the same picture and model replaces this one"),
    "whole": Field("boolean?", "false if the caption was cut off at the maximum length"),
}
COMPARISON_FIELDS = {
    "v": Field("integer", "version of the record"),
    "prompt": Field("string", "the prompt for every picture"),
    "models": Field("object", "name -> {path, size}, `base` first"),
    "sampling": Field("object", "sampling parameters"),
    "notes": Field("list of strings", "notes on the comparison"),
    "pictures": Field("list of objects", "{image, references}, in order"),
}
VOTES_FIELDS = {
    "v": Field("integer", "version of the record"),
    "votes": Field("object", "picture -> name of a model, or `same`"),
    "blind": Field("list of strings?", "pictures whose vote was blind: the models' names were hidden"),
}
SKIPPED_FIELDS = {
    "key": Field("string", "key of the sample in its shard"),
    "reason": Field("string", "why it could not be used, as a code"),
    "detail": Field("string", "the reason as text"),
    "shard": Field("string", "file of the sample"),
    "code": Field("string?", "the broken rule, more specific than the reason"),
}
CHECK_FIELDS = {
    "v": Field("integer", "version of the record"),
    "pid": Field("integer", "the process that checks"),
    "start": Field("integer", "when it started, in clock ticks since boot"),
    "host": Field("string", "machine on which it runs"),
    "boot_id": Field("string", "boot id of that machine's kernel"),
    "time": Field("number", "Unix seconds of its start, in the end of its end"),
    "read": Field("integer", "bytes compared so far"),
    "total": Field("integer", "bytes to compare"),
    "checkpoints": Field("list of objects", "{step, path, bytes, problem, unknown} of each that is compared"),
    "done": Field("boolean", "whether all are compared"),
}
NODES_FIELDS = {
    "v": Field("integer", "version of the record"),
    "time": Field("number", "Unix seconds; rank 0 writes the file every few seconds"),
    "nodes": Field(
        "list of objects",
        "{node, host, first_rank, ranks, quiet, silent} of each machine; quiet: seconds since it last answered; silent: whether it is gone",
    ),
}
QUEUE_FIELDS = {
    "v": Field("integer", "version of the record"),
    "order": Field("list of strings", "ids of queued runs, the next one first; runs that it does not name follow in the order of `queued`"),
    "held": Field("list of strings", "ids of queued runs that do not start until they are released"),
}
SILENT_SECONDS = 30.0
"""A machine that has not answered for this long is named."""
MIRROR_FIELDS = {
    "v": Field("integer", "version of the record"),
    "to": Field("string?", "folder of this run in its mirror, which looks like a run"),
    "steps": Field("list of integers?", "steps of the checkpoints that are there"),
    "error": Field("string | null", "why the last copy failed"),
    "time": Field("number", "Unix seconds of the last copy"),
}
RANK_FIELDS = {
    "v": Field("integer", "version of the record"),
    "rank": Field("integer", "of the process in the run"),
    "pid": Field("integer", "the process"),
    "host": Field("string", "machine it runs on"),
    "step": Field("integer", "steps done"),
    "doing": Field("string", "start, data, step, evaluation, captions or checkpoint"),
    "count": Field("integer", "notes so far"),
    "time": Field("number", "Unix seconds of this note"),
}
AT_START, AT_DATA, AT_STEP, AT_EVALUATION, AT_CAPTIONS, AT_CHECKPOINT = "start", "data", "step", "evaluation", "captions", "checkpoint"
DOINGS = {
    AT_START: "starting", AT_DATA: "waiting for data", AT_STEP: "in forward, backward or the optimizer", AT_EVALUATION: "evaluating",
    AT_CAPTIONS: "writing captions", AT_CHECKPOINT: "writing a checkpoint",
}  # fmt: skip
"""What a rank does, in words, in the order of a step."""
START, RESUME, RESTART, DAMAGED, NOTE, SAVED = "start", "resume", "restart", "damaged", "note", "save"
NAN, SPIKE, STOPPED, DONE = "nan", "spike", "stop", "done"
EVENTS = {
    START: "the first step is about to start",
    RESUME: "training resumes from a checkpoint; rows that follow replace earlier rows of the same steps",
    RESTART: "the supervisor restarts the command after a failure, for the reason in the text; it writes this row itself",
    DAMAGED: "a checkpoint could not be read; the one before it is used",
    NOTE: "something that users should know",
    SAVED: "a checkpoint was saved",
    NAN: "the loss or the gradient norm was NaN or infinite; the step was skipped, the weights are unchanged",
    SPIKE: "the loss was far above that of the previous steps",
    STOPPED: "stopped cleanly before the last step",
    DONE: "all steps are done",
}
BAD_EVENTS = (RESTART, DAMAGED, NAN, SPIKE)
"""Events that are shown with a warning sign."""
STEP_EVENTS = (NAN, SPIKE)
"""Events whose text says the step."""


class SampleRow(NamedTuple):
    """A row of samples.jsonl with defaults for missing fields."""

    image: str
    text: str
    model: str
    """Empty if the row has none."""
    prompt: str | None
    step: int | None
    seconds: float | None
    done: bool
    whole: bool


def sample_row(
    image: str, prompt: str, model: str, text: str, seconds: float, *, step: int | None = None, done: bool = True, whole: bool = True
) -> dict[str, Any]:  # fmt: skip
    """A row of samples.jsonl. whole: False for a caption that was cut off at the maximum length."""
    return {
        "v": VERSION, **({} if step is None else {"step": step}), "image": image, "prompt": prompt, "model": model, "text": text,
        "seconds": round(seconds, 3), "done": done, **({} if whole or not done else {"whole": False}),
    }  # fmt: skip


def read_sample(row: Mapping[str, Any]) -> SampleRow | None:
    """Parse a row of samples.jsonl; None for a row without a picture or a text."""
    image, text, model, prompt, step = (row.get(key) for key in ("image", "text", "model", "prompt", "step"))
    if not isinstance(image, str) or not isinstance(text, str):
        return None
    return SampleRow(
        image, text, model if isinstance(model, str) else "", prompt if isinstance(prompt, str) else None,
        step if isinstance(step, int) and not isinstance(step, bool) else None, finite(row.get("seconds")),
        row.get("done") is not False, row.get("whole") is not False,
    )  # fmt: skip


def is_number(value: Any) -> bool:
    """Whether a field holds a number, finite or not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(value: Any) -> float | None:
    """The value as a float; None if it is not a number, NaN, infinite, or a whole number larger than any float."""
    try:
        return float(value) if is_number(value) and math.isfinite(value) else None
    except OverflowError:
        return None


def version_problem(record: Mapping[str, Any]) -> str:
    """A message for a plan or a row that a newer version of this program wrote; empty if this version can read it."""
    version = record.get("v")
    if isinstance(version, int) and version > VERSION:
        return f"its record has version {version}, and this qwen3vl reads versions up to {VERSION}; upgrade qwen3vl"
    return ""
