"""Saving the checkpoints of a run, atomically, by Megatron's distributed save.

A checkpoint is written into a temporary folder and renamed when all of it is on disk; the tracker is updated last. Whenever
a run is killed, the tracker points to a complete checkpoint.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3vl_core.model.patches.write_results import patch_next_save

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.transformer.module import MegatronModule
from torch.distributed.checkpoint.api import CheckpointException

from qwen3vl_core import file_digests
from qwen3vl_core.checkpoint import retention, torch_dist
from qwen3vl_core.checkpoint.hf import copy_side_files
from qwen3vl_core.checkpoint.retention import EXTRA
from qwen3vl_core.checkpoint.training_state import metadata, sharded_state
from qwen3vl_core.digested_file import WrittenDigests
from qwen3vl_core.errors import WorkError
from qwen3vl_core.files import UNFINISHED, disk_full, to_disk, write_text
from qwen3vl_core.run_record import TRACKER

# from Megatron-Core 0.17 on another package would write what is saved while training goes on
_OWN_ASYNC_WRITER = {"async_strategy": "mcore"} if "async_strategy" in inspect.signature(dist_checkpointing.save).parameters else {}


def _on_every_rank(action: Callable[[], Any], folder: Path, *, saved: bool = False) -> Any:
    """Run an action on rank 0 and broadcast its result; when it fails, every rank raises instead of hanging."""
    outcome: list[Any] = [None, None]
    error: OSError | None = None
    if dist.get_rank() == 0:
        try:
            outcome[1] = action()
        except OSError as caught:
            error, outcome = caught, ["the disk is full" if disk_full(caught) else caught.strerror or str(caught), None]
    dist.broadcast_object_list(outcome, src=0)
    if outcome[0] is not None:
        raise WorkError(f"{folder}: {outcome[0]}; the checkpoint was not written, the previous one is complete") from error
    return outcome[1]


@dataclass
class Saving:
    """A checkpoint that is being written."""

    folder: Path
    """Its final folder."""
    building: Path
    extra: dict[str, Any]
    iteration: int
    written: WrittenDigests
    """Digests of the files of this rank that were made while they were written."""
    queue: AsyncCallsQueue | None = None
    """None when it was written synchronously."""
    started: float = field(default_factory=time.monotonic)
    blocked: float = 0.0
    """Seconds that training has waited for it."""
    digests: _Digests | None = None
    """Of the files of this rank, once they are written."""

    @property
    def digest_seconds(self) -> float:
        """How long this rank has waited for the digests of its files, once they are made."""
        return self.digests.seconds if self.digests is not None else 0.0

    def finished(self, *, wait: bool) -> bool:
        """Whether it is on disk and the tracker points to it. Called by every rank, at the same steps. Raises WorkError
        when it could not be written; the previous checkpoint is then still complete."""
        began = time.monotonic()
        if self.queue is not None:
            with _write_errors(self.folder, self.building):
                if not self.queue.maybe_finalize_async_calls(blocking=wait):
                    return False
            self.queue = None
        if self.digests is None:
            self.digests = _Digests(self.building, self.written)
        if not wait and not _all_agree(self.digests.done):
            return False
        each: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(each, self.digests.result())
        _on_every_rank(lambda: self._name(each), self.folder)
        self.blocked += time.monotonic() - began
        return True

    def _name(self, each: list[dict[str, file_digests.Digest] | str]) -> None:
        """Write its digests, rename it to its final name, then update the tracker. each: digests of the files of each rank, or why
        they could not be read. Raises OSError."""
        digests: dict[str, file_digests.Digest] = {}
        for of_rank in each:
            if isinstance(of_rank, str):
                raise OSError(0, of_rank)
            digests |= of_rank
        write_text(self.building / EXTRA, json.dumps(self.extra | {retention.DIGESTS: True}) + "\n")
        digests |= file_digests.of_files(self.building, (name for name in os.listdir(self.building) if name not in digests))
        write_text(self.building / file_digests.NAME, file_digests.written(digests))
        for name in (EXTRA, retention.COMMON, retention.BACKEND, file_digests.NAME, ""):
            if (self.building / name).exists():  # Megatron-Core from 0.19 on has the common values among the shards
                to_disk(self.building / name)
        if self.folder.exists():
            retention.remove(self.folder)
        os.rename(self.building, self.folder)
        write_text(self.folder.parent / TRACKER, f"{self.iteration}\n")
        to_disk(self.folder.parent)


class _Digests:
    """Reads the files that this rank has written and that have no digests yet, in a thread: training may go on meanwhile."""

    def __init__(self, building: Path, written: WrittenDigests) -> None:
        self._building, self._written, self.seconds = building, written, 0.0
        self._result: dict[str, file_digests.Digest] | str | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        prefix, began, waited = f"__{dist.get_rank()}_", time.monotonic(), 0.0
        try:
            known, waited = self._written.read(self._building)
            names = [name for name in os.listdir(self._building) if name.startswith(prefix) and name not in known]
            self._result = known | file_digests.of_files(self._building, names)
        except OSError as error:
            self._result = f"{error.filename or self._building}: {error.strerror}"
        self.seconds = waited + time.monotonic() - began

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> dict[str, file_digests.Digest] | str:
        """The digests, or why there are none."""
        self._thread.join()
        return "the digests could not be made" if self._result is None else self._result


def _all_agree(flag: bool) -> bool:
    """Whether a flag is set on every rank."""
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    votes = torch.tensor([flag], dtype=torch.int32, device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MIN)
    return bool(votes.item())


class _write_errors:
    """Context of a write: removes the unfinished folder when it fails and reports a full disk in one line."""

    def __init__(self, folder: Path, building: Path) -> None:
        self.folder, self.building = folder, building

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # torch's CheckpointException is not an Exception
        if error is None or not isinstance(error, Exception | CheckpointException):
            return
        shutil.rmtree(self.building, ignore_errors=True)
        text = str(error)
        if disk_full(error) or "No space left" in text or "Disk quota" in text or "PytorchStreamWriter" in text or "unexpected pos" in text:
            line = "the disk is full; the previous checkpoint is complete; free some space and resume the run"
            raise WorkError(f"{self.folder}: {line}") from error
        if isinstance(error, CheckpointException):
            reason = next((str(failure[0]) for failure in error.failures.values()), text)
            raise WorkError(f"{self.folder}: could not be written ({reason}); the previous checkpoint is complete") from error


def start_saving(
    directory: Path, iteration: int, *, models: list[MegatronModule], optimizer: Any, scheduler: Any, extra: dict[str, Any],
    common: dict[str, Any], side: Path, asynchronous: bool = False,
) -> Saving:  # fmt: skip
    """Start writing `directory/iter_…`. Called by every rank; `Saving.finished` completes it.

    models: the chunks of this stage, without their data-parallel wrapping. extra: plain values for `load_training`. common:
    what Megatron-LM expects in `common.pt`. side: the folder whose config and tokenizer files are copied beside the tracker.
    asynchronous: copy the state and let forked processes write it while training continues; else it is written on return.
    """
    began = time.monotonic()
    folder = directory / torch_dist.iteration_folder(iteration)

    def begin() -> str:
        # a unique name: processes of a killed run may still be writing to theirs
        name = f"{folder.name}.{os.getpid()}-{time.time_ns()}{UNFINISHED}"
        (directory / name).mkdir(parents=True)
        if not (directory / TRACKER).exists():
            copy_side_files(side, directory)
        return name

    building = directory / _on_every_rank(begin, folder)
    saving = Saving(folder, building, extra, iteration, patch_next_save())
    with _write_errors(folder, building):
        state = sharded_state(models, optimizer, scheduler, loading=False) | common | {"iteration": iteration}
        # torch's own checksums take several times as long as the write, and nothing ever compares them; the digests are
        torch.serialization.set_crc32_options(False)
        request = dist_checkpointing.save(
            state, str(building), content_metadata=metadata(), async_sharded_save=asynchronous, **_OWN_ASYNC_WRITER
        )
        if request is not None:
            saving.queue = AsyncCallsQueue()
            saving.queue.schedule_async_request(request)
    saving.blocked = time.monotonic() - began
    return saving


def save_training(directory: Path, iteration: int, **parts: Any) -> Path:
    """`start_saving`, and wait until the tracker points to it."""
    saving = start_saving(directory, iteration, **parts)
    saving.finished(wait=True)
    return saving.folder
