"""Which hub a download without `--from` uses: Hugging Face, or ModelScope where that cannot be reached. Waits for seconds at most."""

from __future__ import annotations

import http.client
import importlib.util
import os
import threading
import urllib.error
import urllib.request

HUGGING_FACE = "https://huggingface.co"
PROBE_SECONDS = 5.0
"""For an answer of any kind, names and proxies included."""


def choose() -> str:
    """`huggingface` or `modelscope`. Asks nobody where the user has set Hugging Face's address, or has no client of ModelScope."""
    named = os.environ.get("HF_ENDPOINT") or os.environ.get("HF_HUB_OFFLINE")
    if named or importlib.util.find_spec("modelscope_hub") is None or answers(HUGGING_FACE):
        return "huggingface"
    return "modelscope"


def answers(address: str) -> bool:
    """Whether a server answers, through the proxy that the environment names. Bounded: looking up a name may hang for minutes."""
    found = threading.Event()

    def look() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PROBE_SECONDS).close()
        except urllib.error.HTTPError:
            pass  # it answers
        except (OSError, ValueError, http.client.HTTPException):
            return
        found.set()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return found.is_set()
