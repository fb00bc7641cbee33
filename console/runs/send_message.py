"""`python -m console.runs.send_message`: sends one message about a run, read from standard input, to webhooks and a command.

A process of its own beside the supervisor: nothing that a webhook or a command does, or never finishes, delays or ends a run. Failures are
lines in the run's log, which is this process's standard error. Standard library only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qwen3vl_core import log_lines, notify
from qwen3vl_core.errors import EXIT_DONE, EXIT_FAILED
from qwen3vl_core.notify import Address, Receivers

TIMEOUT = 10.0
"""Seconds of one attempt, from its beginning to its last byte."""
WAITS = (2.0, 8.0)
"""Seconds before the second and the third attempt."""
LONGEST_WAIT = 20.0
"""Of what a service asks for by Retry-After."""
COMMAND_SECONDS = 60.0
MOST_SECONDS = 120.0
"""For everything; then this process ends."""
LARGEST_ANSWER = 64 << 10
_BUSY = ("code 130101", "code 11232", "code 9499", "code 45009")
"""Of services that take only so many messages a minute."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The body and the signature are for the address that was given, and for no other."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


def post(address: Address, message: Mapping[str, Any], timeout: float = TIMEOUT) -> tuple[str, float | None]:
    """One attempt: (why it failed, empty where it did not; seconds to wait before another attempt, None where it would fail, too)."""
    posted = notify.request(address, message)
    asked = urllib.request.Request(posted.url, posted.body, posted.headers, method="POST")
    try:
        with urllib.request.build_opener(_NoRedirects).open(asked, timeout=timeout) as answer:
            refused = notify.refusal(address, answer.read(LARGEST_ANSWER))
            return refused or "", (0.0 if refused and any(code in refused for code in _BUSY) else None)
    except urllib.error.HTTPError as error:
        with error:
            if 300 <= error.code < 400:
                return f"it answers {error.code} and names another address, which is not followed; give that one", None
            wait = 0.0 if error.code == 429 or error.code >= 500 else None
            if wait is not None:
                with contextlib.suppress(ValueError):
                    wait = min(max(float(error.headers.get("Retry-After") or 0), 0.0), LONGEST_WAIT)
            return f"it answers {error.code}", wait
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        words = "no answer in time" if isinstance(reason, TimeoutError) else getattr(reason, "strerror", None) or type(reason).__name__
        return f"{words}", 0.0


def deliver(
    address: Address, message: Mapping[str, Any], *, timeout: float = TIMEOUT, waits: Sequence[float] = WAITS,
    sleep: Callable[[float], None] = time.sleep,
) -> str:  # fmt: skip
    """Send to one webhook, up to three times. Returns why it failed, empty where it did not; the line shows no secret."""
    failure = ""
    for attempt in range(len(waits) + 1):
        outcome: list[tuple[str, float | None]] = []
        # a server that sends a byte now and then would keep the attempt for ever
        thread = threading.Thread(target=lambda found=outcome: found.append(post(address, message, timeout)), daemon=True)
        thread.start()
        thread.join(timeout + 1)
        failure, again = outcome[0] if outcome else ("no answer in time", 0.0)
        if not failure:
            return ""
        if again is None or attempt == len(waits):
            break
        sleep(max(waits[attempt], again))
    times = f" ({attempt + 1} attempts)" if attempt else ""
    return f"{address.shown}: {failure}{times}"


def call(words: Sequence[str], message: Mapping[str, Any], seconds: float = COMMAND_SECONDS) -> str:
    """Run the hook's command: the message as JSON on its standard input, and its fields in the environment. Returns why it failed."""
    environment = {**os.environ}
    for name, value in message.items():
        if value is not None and not isinstance(value, dict | list):
            environment[f"QWEN3VL_NOTIFY_{name.upper()}"] = str(value).replace("\0", "")
    what = f"command {words[0]}"
    try:
        child = subprocess.Popen(
            list(words), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
            start_new_session=True, cwd="/",
        )  # fmt: skip
    except (OSError, ValueError) as error:
        return f"{what}: could not be started ({getattr(error, 'strerror', None) or error})"
    try:
        child.communicate(json.dumps(message, ensure_ascii=False).encode("utf-8", "replace") + b"\n", timeout=seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        return f"{what}: did not end in {seconds:g} s; killed"
    return f"{what}: ended with exit code {child.returncode}" if child.returncode else ""


def send(to: Receivers, message: Mapping[str, Any], told: Callable[[str, str], None]) -> int:
    """Send to all at once. told: called with (receiver, why it failed or nothing). Returns how many failed."""
    failures: list[str] = []

    def run(name: str, work: Callable[[], str]) -> None:
        failure = work()
        if failure:
            failures.append(failure)
        told(name, failure)

    work: list[tuple[str, Callable[[], str]]] = [(a.shown, lambda a=a: deliver(a, message)) for a in to.addresses]  # type: ignore[misc]
    if to.command:
        work.append((f"command {to.command[0]}", lambda: call(to.command, message)))
    threads = [threading.Thread(target=run, args=item, daemon=True) for item in work]
    for thread in threads:
        thread.start()
    until = time.monotonic() + MOST_SECONDS
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return len(failures) + sum(thread.is_alive() for thread in threads)


def main() -> int:
    """Standard input: {"notify": [address as recorded], "notify_command": text, "message": {…}}."""
    given = json.load(sys.stdin)
    to, event = notify.receivers(given["notify"], given["notify_command"]), given["message"].get("event")

    def told(name: str, failure: str) -> None:
        if failure:
            line = log_lines.written(f"not told of {event}: {failure}", log_lines.NOT_TOLD)
            with contextlib.suppress(OSError):
                os.write(2, f"{line}\n".encode())

    return EXIT_FAILED if send(to, given["message"], told) else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
