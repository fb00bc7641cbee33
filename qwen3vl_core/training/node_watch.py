"""Which machines of a job still answer: each sets a counter in the job's store, and rank 0 writes who has stopped doing so.

A machine that is gone sends nothing, so its peers wait for the time-out of a collective, whose error names no machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import DistStoreError, TCPStore

from qwen3vl_core import log_lines
from qwen3vl_core.files import write_text
from qwen3vl_core.run_record import NODES, SILENT_SECONDS, VERSION, node_text

BEAT_SECONDS = 5.0
STORE_SECONDS = 30.0
"""For an answer of the store, which is on the first machine."""


class NodeWatch:
    """A thread of the first rank of each machine; none where the job has one machine."""

    def __init__(self, run_dir: Path, environment: Mapping[str, str], beat: float = BEAT_SECONDS, silent: float = SILENT_SECONDS) -> None:
        """environment: as torchrun sets it. beat: seconds between two beats. silent: after how many a machine is named."""
        self._file, self._beat, self._silent = run_dir / NODES, beat, silent
        self._node, self._nodes = int(environment.get("GROUP_RANK", 0)), int(environment.get("GROUP_WORLD_SIZE", 1))
        self._local = int(environment.get("LOCAL_RANK", 0)), int(environment.get("LOCAL_WORLD_SIZE", 1))
        self._rank = int(environment.get("RANK", 0))
        self._key = f"qwen3vl-nodes/{environment.get('TORCHELASTIC_RUN_ID', '')}/"
        self._ended = threading.Event()
        self._named: set[int] = set()
        self._thread: threading.Thread | None = None
        if self._nodes > 1 and self._local[0] == 0:
            self._address = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread; one that waits for the store is left behind."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(self._beat)

    def _work(self) -> None:
        seen: dict[int, tuple[bytes, float]] = {}
        count = 0
        # RuntimeError is what torch raises for a store that is gone: the first machine has ended, and the job with it
        with contextlib.suppress(DistStoreError, RuntimeError, OSError):
            # a connection of its own: the main thread may wait in the other one
            store = TCPStore(*self._address, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=STORE_SECONDS))
            while not self._ended.wait(self._beat if count else 0):
                count += 1
                store.set(f"{self._key}{self._node}", json.dumps([count, socket.gethostname(), self._rank, self._local[1]]))
                if self._rank == 0:
                    self._look(store, seen)

    def _look(self, store: TCPStore, seen: dict[int, tuple[bytes, float]]) -> None:
        now = time.monotonic()
        for node in range(self._nodes):
            key = f"{self._key}{node}"
            value = store.get(key) if store.check([key]) else b""
            if node not in seen or seen[node][0] != value:
                seen[node] = value, now
        entries: list[dict[str, Any]] = []
        for node, (value, since) in sorted(seen.items()):
            _, host, first, ranks = json.loads(value) if value else (0, "", -1, 0)
            entries.append({"node": node, "host": host, "first_rank": first, "ranks": ranks, "quiet": round(now - since, 1)})
        write_text(self._file, json.dumps({"v": VERSION, "time": time.time(), "nodes": entries}) + "\n")
        silent: dict[int, dict[str, Any]] = {entry["node"]: entry for entry in entries if entry["quiet"] >= self._silent}
        for node in silent.keys() - self._named:
            print(log_lines.written(node_text(silent[node]), log_lines.NODE_SILENT), file=sys.stderr, flush=True)
        for node in self._named - silent.keys():
            print(log_lines.written(f"node {node} answers again", log_lines.NODE_SILENT), file=sys.stderr, flush=True)
        self._named = set(silent)


def started(run_dir: Path) -> NodeWatch:
    """The watch of this process, in the environment that torchrun gave it."""
    return NodeWatch(run_dir, os.environ)
