"""Which machines of a job still answer: each sets a counter in the job's store, and rank 0 writes who has stopped doing so.

A machine that is gone sends nothing, so its peers wait for the time-out of a collective, whose error names no machine.
"""

from __future__ import annotations

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
ENDED = -1
"""In the place of a counter: the processes have ended by themselves."""
QUIET_BEATS, WAITED_BEATS = 2.5, 4.0
"""After a lost connection: a machine that has not answered for so many beats is gone, and how long the others wait to know it. torchrun
kills a process 30 s after the first one of its machine has failed."""
LOST = ("connection", "socket", "nccl", "broken pipe", "remote process exited", "peer")
"""Words of the errors of torch's backends when a peer is gone."""
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
        self._ended, self._found = threading.Event(), threading.Event()
        self._named: set[int] = set()
        self._thread: threading.Thread | None = None
        if self._nodes > 1 and self._local[0] == 0:
            self._address = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def failed(self, error: BaseException) -> None:
        """The training of this process ends by `error`. When that is the loss of a peer, this waits until the machine that does not answer
        any more is known; the other machines do so, too, and answer meanwhile. Otherwise the others learn that this one has ended."""
        if self._thread is None:
            return
        text = str(error).lower()
        if isinstance(error, RuntimeError) and any(word in text for word in LOST):
            self._silent = min(self._silent, QUIET_BEATS * self._beat)
            self._found.wait(WAITED_BEATS * self._beat)
        else:
            self.close()

    def close(self) -> None:
        """End the thread; one that waits for the store is left behind."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(self._beat)

    def _work(self) -> None:
        seen: dict[int, tuple[bytes, float]] = {}
        count = 0
        try:
            # a connection of its own: the main thread may wait in the other one
            store = TCPStore(*self._address, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=STORE_SECONDS))
            while not self._ended.wait(self._beat if count else 0):
                count += 1
                store.set(f"{self._key}{self._node}", json.dumps([count, socket.gethostname(), self._rank, self._local[1]]))
                if self._rank == 0:
                    self._look(store, seen)
            store.set(f"{self._key}{self._node}", json.dumps([ENDED, socket.gethostname(), self._rank, self._local[1]]))
        # RuntimeError is what torch raises for a store that is gone
        except (DistStoreError, RuntimeError, OSError):
            if self._node and not self._ended.wait(self._beat):
                text = f"the first node ({self._address[0]}) has not answered: its machine or network is down, or its processes have ended"
                print(log_lines.written(text, log_lines.NODE_SILENT), file=sys.stderr, flush=True)
                self._found.set()

    def _look(self, store: TCPStore, seen: dict[int, tuple[bytes, float]]) -> None:
        now = time.monotonic()
        for node in range(self._nodes):
            key = f"{self._key}{node}"
            value = store.get(key) if store.check([key]) else b""
            if node not in seen or seen[node][0] != value:
                seen[node] = value, now
        entries: list[dict[str, Any]] = []
        for node, (value, since) in sorted(seen.items()):
            count, host, first, ranks = json.loads(value) if value else (0, "", -1, 0)
            quiet = 0.0 if count == ENDED else round(now - since, 1)
            entries.append(
                {"node": node, "host": host, "first_rank": first, "ranks": ranks, "quiet": quiet, "silent": quiet >= self._silent}
            )
        write_text(self._file, json.dumps({"v": VERSION, "time": time.time(), "nodes": entries}) + "\n")
        silent: dict[int, dict[str, Any]] = {entry["node"]: entry for entry in entries if entry["silent"]}
        for node in silent.keys() - self._named:
            print(log_lines.written(node_text(silent[node]), log_lines.NODE_SILENT), file=sys.stderr, flush=True)
        for node in self._named - silent.keys():
            print(log_lines.written(f"node {node} answers again", log_lines.NODE_SILENT), file=sys.stderr, flush=True)
        self._named = set(silent)
        if silent:
            self._found.set()
        else:
            self._found.clear()


def started(run_dir: Path) -> NodeWatch:
    """The watch of this process, in the environment that torchrun gave it."""
    return NodeWatch(run_dir, os.environ)
