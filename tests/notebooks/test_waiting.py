"""A cell that waits, in a real kernel: widgets answer meanwhile, later cells keep their turn, an interrupt ends the wait alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("ipykernel")

from jupyter_client import BlockingKernelClient, KernelManager

from console.notebook import wait
from console.notebook.waiting import WaitInterrupted
from console.runs import launch
from console.runs.store import Run, RunStore
from tests.console.runs import jobs
from tests.console.runs.jobs import until
from tests.notebooks.conftest import recorded
from tests.notebooks.kernels import Kernel

SECONDS = 120.0


class Page:
    """What a page does: it runs cells, sends clicks, and reads what the kernel publishes."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager, self.client = manager, client

    def message(self, of: str, *kinds: str) -> dict[str, Any]:
        """The next message of these kinds about a request."""
        while True:
            message = self.client.get_iopub_msg(timeout=SECONDS)
            if message["parent_header"].get("msg_id") == of and message["msg_type"] in kinds:
                return message

    def run(self, code: str) -> str:
        """A cell, whose printed text is returned."""
        sent, text = self.client.execute(code), ""
        while (message := self.message(sent, "stream", "status", "error"))["content"].get("execution_state") != "idle":
            assert message["msg_type"] != "error", message["content"]["traceback"]
            text += message["content"].get("text", "")
        return text

    def send(self, comm: str, data: dict[str, Any]) -> str:
        """A message from the page to a widget."""
        message = self.client.session.msg("comm_msg", {"comm_id": comm, "data": data})
        self.client.shell_channel.send(message)
        return message["header"]["msg_id"]

    def click(self, button: str) -> str:
        return self.send(button, {"method": "custom", "content": {"event": "click"}})


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Page]:
    with Kernel(tmp_path_factory.mktemp("waiting")) as kernel:
        client = kernel.manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=SECONDS)
        yield Page(kernel.manager, client)
        client.stop_channels()


@pytest.fixture
def live(store: RunStore) -> Run:
    run = recorded(store, program="print('at work', flush=True);" + jobs.SLEEPS)
    launch.start(run)
    until((run.path / "up").exists)
    return run


@pytest.mark.slow
def test_a_click_while_a_cell_waits_is_handled_at_once_and_the_next_cell_keeps_its_turn(page, live):
    button, answers = page.run(
        f"from console.notebook import RunsTable, wait\ntable = RunsTable({str(live.path.parent)!r})\n"
        "print(table.stop_button.model_id, table.children[-1].shown.model_id)"
    ).split()
    waiting = page.client.execute(f"order = [wait({str(live.path)!r}, show=False)]")
    page.message(waiting, "execute_input")
    later = page.client.execute("order.append('later'); print(order)")
    began = time.monotonic()
    asked = page.send(answers, {"method": "update", "state": {"asked": 1}})
    while "answered" not in page.message(asked, "comm_msg")["content"]["data"]["state"]:
        pass  # the echo of what was sent
    took = time.monotonic() - began
    assert page.message(asked, "status")["content"]["execution_state"] == "idle", "the page sends its next value after that"
    assert launch.wait(live, 0) == "running"
    assert took < 5, "seconds on a busy machine; alone it takes some milliseconds"
    page.click(button)
    assert launch.wait(live, SECONDS) == "stopped"
    # the cell that came before the click has its turn after the one that waited
    assert page.message(later, "stream")["content"]["text"].strip() == "['stopped', 'later']"
    # nothing that came is lost, and the kernel answers as before
    assert page.run("print(table.children[-1].shown.asked)").strip() == "1"


@pytest.mark.slow
def test_an_interrupt_ends_the_wait_in_one_line_and_the_run_continues(page, live):
    waiting = page.client.execute(f"from console.notebook import wait\nwait({str(live.path)!r})")
    page.message(waiting, "stream")  # the log's line: it waits
    page.manager.interrupt_kernel()
    error = page.message(waiting, "error")["content"]
    assert error["ename"] == "WaitInterrupted"
    assert error["traceback"] == [
        f"run {live.id}: running; the wait was interrupted, the run continues; to stop: qwen3vl runs stop {live.number}"
    ]
    assert live.alive
    until(lambda: page.run("print(1)").strip() == "1")  # what comes at once is left out, as after every error


def test_outside_of_a_kernel_a_wait_is_interrupted_alike(store, monkeypatch):
    live = recorded(store, program=jobs.SLEEPS)
    launch.start(live)
    monkeypatch.setattr("time.sleep", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(WaitInterrupted, match="the run continues; to stop: qwen3vl runs stop 1"):
        wait(live, show=False)
    monkeypatch.undo()
    assert live.alive
