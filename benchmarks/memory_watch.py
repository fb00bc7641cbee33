"""How much memory a benchmark's commands take: of the host by process, and of the GPUs by nvidia-smi."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any

from qwen3vl_core.formats import GIB
from qwen3vl_core.layout.gpus import visible

MARK = "QWEN3VL_BENCHMARK"
"""Environment variable by which the processes of a command are known."""
SAMPLE_SECONDS = 0.2


class MemoryWatch:
    """Memory of the processes of the commands that are started inside this context; sampled, so what lasts shorter may be missed."""

    def __init__(self) -> None:
        self.token = f"{os.getpid()}-{time.monotonic_ns()}"
        self.phase = ""
        self.process: dict[str, int] = {}
        """Largest resident set of a process until the end of each phase, bytes."""
        self.together = self.gpu = 0
        """Bytes of all processes without pages of files, and of the fullest GPU."""
        self._known: dict[str, bool] = {}
        self._done = threading.Event()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._host, self._gpu)]

    def __enter__(self) -> MemoryWatch:
        os.environ[MARK] = self.token
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        del os.environ[MARK]

    def figures(self) -> dict[str, Any]:
        smi = {"smi_gib": round(self.gpu / GIB, 1)} if self.gpu else {}
        return {"process_gib": round(max(self.process.values(), default=0) / GIB, 2), "together_gib": round(self.together / GIB, 2)} | smi

    def _host(self) -> None:
        mark = f"{MARK}={self.token}".encode()
        while not self._done.wait(SAMPLE_SECONDS):
            together = 0
            for folder in Path("/proc").iterdir():
                if not folder.name.isdigit() or int(folder.name) == os.getpid():
                    continue
                with contextlib.suppress(OSError):
                    if folder.name not in self._known:
                        self._known[folder.name] = mark in (folder / "environ").read_bytes().split(b"\0")
                    if self._known[folder.name]:
                        sizes = _status(folder)
                        self.process[self.phase] = max(self.process.get(self.phase, 0), sizes.get("VmHWM", 0))
                        together += sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0)
            self.together = max(self.together, together)

    def _gpu(self) -> None:
        while (used := [int(gpu["memory.used"]) for gpu in visible("memory.used") if gpu["memory.used"].isdigit()]) and not self._done.wait(
            1
        ):
            self.gpu = max(self.gpu, max(used) << 20)


def _status(folder: Path) -> dict[str, int]:
    """Bytes by name, of /proc/PID/status."""
    lines = (line.split() for line in (folder / "status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) << 10 for words in lines if words[-1] == "kB"}
