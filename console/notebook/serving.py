"""Handles the widgets' messages while a cell waits: a kernel answers no click before the running cell has ended."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

COMMS = ("comm_open", "comm_msg", "comm_close")
"""Messages between a widget and its page."""
_tasks: set[asyncio.Future[Any]] = set()
"""Messages that are handled after the running cell; asyncio itself keeps no reference."""


@contextlib.contextmanager
def serving() -> Iterator[Callable[[float], None]]:
    """Gives `pause(seconds)`, which sleeps and handles the widgets' messages meanwhile, at once. Outside of a kernel, it sleeps.

    Everything else that arrives, such as the next cells, is kept in its order and handled after the running cell. KeyboardInterrupt
    ends a pause.
    """
    stream = _stream()
    if stream is None:
        yield time.sleep
        return
    kept: list[Any] = []
    callback = stream._recv_callback  # what the kernel does with a message
    kernel = _kernel()

    def take(frames: Any) -> None:
        if not _handle(kernel, stream, frames):
            kept.append(frames)

    def pause(seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if stream.socket.poll(max(int(1000 * left), 1)):
                stream.flush(limit=1)

    stream.on_recv(take, copy=False)
    try:
        yield pause
    finally:
        for frames in kept:
            handled = callback(frames)
            if inspect.isawaitable(handled):
                task = asyncio.ensure_future(handled)
                _tasks.add(task)
                task.add_done_callback(_tasks.discard)
        stream.on_recv(callback, copy=False)


def _kernel() -> Any:
    """The kernel that this process is; None if it is none."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None)


def _stream() -> Any:
    """The stream on which the kernel's main thread gets its messages; None outside of that thread, and in a kernel of another kind."""
    kernel = _kernel()
    if kernel is None or threading.current_thread() is not threading.main_thread():
        return None
    # since ipykernel 7 another thread receives them, and passes them on
    thread = getattr(kernel, "shell_channel_thread", None)
    pair = getattr(getattr(thread, "manager", None), "_shell_channel_to_main", None)
    stream = getattr(pair, "to_stream", None) if thread is not None else getattr(kernel, "shell_stream", None)
    return stream if all(hasattr(stream, name) for name in ("on_recv", "flush", "socket", "_recv_callback")) else None


def _handle(kernel: Any, stream: Any, frames: Any) -> bool:
    """Handle a widget's message. False: it is another kind of message, and untouched."""
    try:
        idents, parts = kernel.session.feed_identities(frames, copy=False)
        kind = kernel.session.deserialize(parts, content=False, copy=False)["header"]["msg_type"]
        if kind not in COMMS:
            return False
        message = kernel.session.deserialize(parts, content=True, copy=False)
    except Exception:
        return False  # the kernel says what is wrong with it
    cell, ident = kernel.get_parent("shell"), kernel._parent_ident["shell"]
    kernel.set_parent(idents, message)
    try:
        # the page sends a control's next value when the one before is done
        _tell_state(kernel, "busy", message)
        kernel.shell_handlers[kind](stream, idents, message)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        _tell_state(kernel, "idle", message)
        kernel.set_parent(ident, cell)
        _tell_state(kernel, "busy", cell)
    return True


def _tell_state(kernel: Any, state: str, parent: Any) -> None:
    content = {"execution_state": state}
    kernel.session.send(kernel.iopub_socket, "status", content, parent=parent, ident=kernel._topic("status"))
