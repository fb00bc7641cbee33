"""TensorBoard for the scalars of runs, as a separate process that listens on the loopback interface."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import subprocess
import sys
import time

from console.runs.store import Run
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.language import filled
from qwen3vl_core.layout.torchrun_command import free_port
from qwen3vl_core.run_record import TENSORBOARD

START_SECONDS = 60.0


class TensorBoard:
    """One TensorBoard process. The caller ends it with `close`."""

    def __init__(self, runs: list[Run], port: int | None = None) -> None:
        """runs: shown together. port: where it listens; None for a free one. Raises RequestError."""
        folders = [run.path / TENSORBOARD for run in runs]
        for run, folder in zip(runs, folders, strict=True):
            if not any(folder.glob("events.out.tfevents.*")):
                raise RequestError(
                    filled("run {}: no scalars for TensorBoard in {}; a finetune writes them from its first step", run.id, folder)
                )
        if importlib.util.find_spec("tensorboard") is None:
            raise RequestError("TensorBoard is not installed; python -m pip install tensorboard")
        self.runs = [run.id for run in runs]
        self.port = port or free_port()
        spec = ",".join(f"{run.id}:{folder}" for run, folder in zip(runs, folders, strict=True))
        source = ["--logdir", str(folders[0])] if len(runs) == 1 else ["--logdir_spec", spec]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tensorboard.main", *source, "--host", "127.0.0.1", "--port", str(self.port)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def wait(self) -> None:
        """Wait until it responds. Raises WorkError if it ends, or does not respond within a minute."""
        until = time.monotonic() + START_SECONDS
        while self.alive and time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.1)
        self.close()
        raise WorkError(
            filled("TensorBoard did not answer on port {}; by hand: python -m tensorboard.main --logdir RUN/{}", self.port, TENSORBOARD)
        )

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
