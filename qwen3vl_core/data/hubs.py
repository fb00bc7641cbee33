"""Runs a hub's client in a separate process, `python -m qwen3vl_core.data.hubs`; the protocol is JSON lines.

The clients download in threads that exceptions do not stop, draw their own progress bars and are configured by environment
variables: a separate process can be killed at once and isolates all of that. `download` starts it, sends a request, reads the
list of files, sends go, and reads the result. Imports no torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TextIO, cast

from qwen3vl_core.files import disk_full

NOT_INSTALLED, NOT_FOUND, NO_REVISION, GATED, DENIED = "not_installed", "not_found", "no_revision", "gated", "denied"
UNREACHABLE, OFFLINE, DISK_FULL, REFUSED, OTHER = "unreachable", "offline", "disk_full", "refused", "other"
QUIET = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "MODELSCOPE_LOG_LEVEL": "CRITICAL", "PYTHONWARNINGS": "ignore"}
"""The caller draws the progress."""
_PATIENCE = {"MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "2"}
"""Give up on an unreachable hub after seconds, unless the user has set it otherwise."""


PARTIAL = ".halves"
"""Folder of the partial large files."""
LARGE = 16 << 20
AT_ONCE = 4
"""Files downloaded in parallel."""


def matching(names: Iterable[str], include: list[str], exclude: list[str]) -> list[str]:
    """The names that these patterns select, as the clients apply them."""
    selected = []
    for name in names:
        if (not include or any(fnmatchcase(name, each) for each in include)) and not any(fnmatchcase(name, each) for each in exclude):
            selected.append(name)
    return selected


class RevisionNotFoundError(LookupError):
    """The repository exists, the revision does not: Hugging Face's name for it, for a client that does not distinguish."""


class HuggingFace:
    """`huggingface_hub`; reads HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE itself."""

    package = "huggingface_hub"

    def __init__(self) -> None:
        from huggingface_hub import HfApi, constants, snapshot_download

        self._api, self._snapshot = HfApi(), snapshot_download
        self.address: str = constants.ENDPOINT

    def files(self, request: dict[str, Any]) -> tuple[str, dict[str, int]]:
        """(commit, name -> bytes)"""
        info = self._api.repo_info(request["name"], repo_type=request["kind"], revision=request["revision"], files_metadata=True)
        self._sizes = {each.rfilename: each.size or 0 for each in getattr(info, "siblings", None) or []}
        return cast(str, info.sha), self._sizes

    def fetch(self, request: dict[str, Any], commit: str) -> None:
        """Download the files of a commit into the folder; resumes partial files."""
        large = [name for name in matching(self._sizes, request["include"], request["exclude"]) if self._sizes[name] >= LARGE]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in pool.map(lambda name: self._fetch_large(request, commit, name), large):
                pass
        # the other files, and the checksums of all
        self._snapshot(
            request["name"], repo_type=request["kind"], revision=commit, local_dir=request["folder"],
            allow_patterns=request["include"] or None, ignore_patterns=request["exclude"] or None, max_workers=AT_ONCE,
        )  # fmt: skip

    def _fetch_large(self, request: dict[str, Any], commit: str, name: str) -> None:
        """Download one large file. The client's snapshot restarts a partial file, its `http_get` resumes it."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        path, size = Path(request["folder"]) / name, self._sizes[name]
        if path.exists():
            return
        address = hf_hub_url(request["name"], name, repo_type=request["kind"], revision=commit)
        if get_hf_file_metadata(address).xet_file_data is not None and importlib.util.find_spec("hf_xet") is not None:
            # transferred in chunks by the Xet protocol
            return
        partial = Path(request["folder"]) / PARTIAL / f"{commit}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        partial.parent.mkdir(exist_ok=True)
        # unbuffered: received bytes are on disk, however this process ends
        with open(partial, "ab", buffering=0) as file:
            if file.tell() > size:
                file.truncate(0)
            http_get(address, file, resume_size=file.tell(), headers=build_hf_headers(), expected_size=size)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, path)


class ModelScope:
    """`modelscope_hub`; reads MODELSCOPE_ENDPOINT, MODELSCOPE_DOMAIN and MODELSCOPE_API_TOKEN itself."""

    package = "modelscope_hub"

    def __init__(self) -> None:
        from modelscope_hub import HubApi

        self._api = HubApi()
        self.address = ""

    def files(self, request: dict[str, Any]) -> tuple[str, dict[str, int]]:
        """(revision, name -> bytes)"""
        from modelscope_hub import HubApi

        # the hub has two sites: ask once which one has the repository
        self.address = self._api.resolve_endpoint_for_read(request["name"], repo_type=request["kind"])
        self._api = HubApi(endpoint=self.address)
        try:
            entries = self._api.list_repo_files(request["name"], request["kind"], revision=request["revision"])
        except Exception as error:
            if request["revision"] is None or classify(error)[0] != NOT_FOUND:
                raise
            # raises the same error if the repository does not exist
            self._api.list_repo_files(request["name"], request["kind"])
            raise RevisionNotFoundError(request["revision"]) from error
        return request["revision"] or "master", {each.path: each.size for each in entries if not each.is_dir}

    def fetch(self, request: dict[str, Any], commit: str) -> None:
        """Download the files of a revision into the folder; resumes partial files."""
        self._api.download_repo(
            request["name"], request["kind"], revision=commit, local_dir=request["folder"],
            allow_patterns=request["include"] or None, ignore_patterns=request["exclude"] or None, max_workers=AT_ONCE,
        )  # fmt: skip


HUBS: dict[str, type[HuggingFace] | type[ModelScope]] = {"huggingface": HuggingFace, "modelscope": ModelScope}
# the clients' errors by class name: their modules change between releases
_BY_NAME = {
    "GatedRepoError": GATED,
    "RevisionNotFoundError": NO_REVISION,
    "RepositoryNotFoundError": NOT_FOUND,
    "NotExistError": NOT_FOUND,
    "AuthenticationError": DENIED,
    "PermissionDeniedError": DENIED,
    "OfflineModeIsEnabled": OFFLINE,
    "HFValidationError": REFUSED,
    "InvalidParameter": REFUSED,
    "UnsupportedProtocol": UNREACHABLE,
    "MissingSchema": UNREACHABLE,
    "InvalidURL": UNREACHABLE,
    "InvalidSchema": UNREACHABLE,
    "TransportError": UNREACHABLE,
    "ConnectionError": UNREACHABLE,
    "TimeoutError": UNREACHABLE,
    "IncompleteSnapshotError": UNREACHABLE,
    "FileMetadataError": UNREACHABLE,
}


def classify(error: BaseException) -> tuple[str, str]:
    """(kind of the error, the client's message in one line)"""
    full = disk_full(error)
    if full is not None:
        return DISK_FULL, str(full.strerror)
    failed = getattr(error, "failed_files", None)
    if isinstance(failed, dict) and failed:
        # several files failed, each with its own error: report the first
        name, first = next(iter(failed.items()))
        kind, text = classify(first)
        return kind, f"{name}: {text}"
    each: BaseException | None = error
    seen: set[int] = set()
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        if isinstance(each, ModuleNotFoundError) and (each.name or "").split(".")[0] in (h.package for h in HUBS.values()):
            return NOT_INSTALLED, str(each)
        for cls in type(each).__mro__:
            if cls.__name__ in _BY_NAME:
                return _BY_NAME[cls.__name__], _line(each)
        if getattr(getattr(each, "response", None), "status_code", None) in (401, 403):
            return DENIED, _line(each)
        each = each.__cause__ or each.__context__
    return OTHER, _line(error)


def _line(error: BaseException) -> str:
    # the system's message is at the end of a long chain of wrapped errors
    system = re.search(r"\[Errno -?\d+\] [^'\"()\[\]]+", str(error))
    if system:
        return system[0].strip()
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def serve(requests: TextIO, answers: TextIO) -> None:
    """Handle one request from `requests`."""

    def say(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    request = json.loads(requests.readline())
    hub = None
    try:
        hub = HUBS[request["hub"]]()
        commit, files = hub.files(request)
        say(commit=commit, files=files, address=hub.address)
        if not requests.readline():
            return
        # the caller's end of the pipe closes when it exits
        threading.Thread(target=lambda: (requests.read(), os._exit(1)), daemon=True).start()
        hub.fetch(request, commit)
        say(done=True)
    except BaseException as error:
        if os.environ.get("QWEN3VL_DEBUG") == "1":
            raise
        kind, text = classify(error)
        say(problem=kind, text=text, address=getattr(hub, "address", ""))


def main() -> None:
    """Standard output is reserved for answers: anything that a client prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for name, value in QUIET.items():
        os.environ[name] = value
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    serve(sys.stdin, answers)
    answers.close()
    # do not wait for the clients' threads
    os._exit(0)


if __name__ == "__main__":
    main()
