"""A hub's own client in a process of its own: `python -m qwen3vl_core.data.hubs`, talked to in JSON lines.

The clients download in threads that no exception ends, draw their own bars and keep their settings in the environment:
in a process of their own they can be ended at once, and none of that reaches the caller. `download` starts it, sends one
request, reads the list of files, says go, and reads how it ended. Imports no torch.
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
UNREACHABLE, TOLD_OFFLINE, DISK_FULL, REFUSED, OTHER = "unreachable", "told_offline", "disk_full", "refused", "other"
QUIET = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "MODELSCOPE_LOG_LEVEL": "CRITICAL", "PYTHONWARNINGS": "ignore"}
"""The caller draws the progress."""
_PATIENCE = {"MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "2"}
"""A hub that is not there is said to be so after seconds, unless the user has asked for more."""


HALVES = ".halves"
"""Folder of the large files that have not come whole."""
LARGE = 16 << 20
AT_ONCE = 4
"""Files."""


def matching(names: Iterable[str], include: list[str], exclude: list[str]) -> list[str]:
    """The names that a download with these patterns gets, as the clients choose them."""
    chosen = []
    for name in names:
        if (not include or any(fnmatchcase(name, each) for each in include)) and not any(fnmatchcase(name, each) for each in exclude):
            chosen.append(name)
    return chosen


class RevisionNotFoundError(LookupError):
    """The repository is there, the revision is not: as Hugging Face's client names it, for a client that does not tell."""


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
        """Get the files of a commit into the folder; goes on with what is half there."""
        large = [name for name in matching(self._sizes, request["include"], request["exclude"]) if self._sizes[name] >= LARGE]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in pool.map(lambda name: self._go_on(request, commit, name), large):
                pass
        # the others, and the checksums of those that are there
        self._snapshot(
            request["name"], repo_type=request["kind"], revision=commit, local_dir=request["folder"],
            allow_patterns=request["include"] or None, ignore_patterns=request["exclude"] or None, max_workers=AT_ONCE,
        )  # fmt: skip

    def _go_on(self, request: dict[str, Any], commit: str, name: str) -> None:
        """Get one large file. The client's snapshot begins a file that was half there anew, its transfer does not."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        path, size = Path(request["folder"]) / name, self._sizes[name]
        if path.exists():
            return
        address = hf_hub_url(request["name"], name, repo_type=request["kind"], revision=commit)
        if get_hf_file_metadata(address).xet_file_data is not None and importlib.util.find_spec("hf_xet") is not None:
            # comes in pieces, by a protocol of its own
            return
        half = Path(request["folder"]) / HALVES / f"{commit}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        half.parent.mkdir(exist_ok=True)
        # unbuffered: what has come is on the disk, whatever ends this process
        with open(half, "ab", buffering=0) as file:
            if file.tell() > size:
                file.truncate(0)
            http_get(address, file, resume_size=file.tell(), headers=build_hf_headers(), expected_size=size)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(half, path)


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

        # the hub has two sites: which one has it is asked once
        self.address = self._api.resolve_endpoint_for_read(request["name"], repo_type=request["kind"])
        self._api = HubApi(endpoint=self.address)
        try:
            found = self._api.list_repo_files(request["name"], request["kind"], revision=request["revision"])
        except Exception as error:
            if request["revision"] is None or fault_of(error)[0] != NOT_FOUND:
                raise
            # raises the same when there is no such repository
            self._api.list_repo_files(request["name"], request["kind"])
            raise RevisionNotFoundError(request["revision"]) from error
        return request["revision"] or "master", {each.path: each.size for each in found if not each.is_dir}

    def fetch(self, request: dict[str, Any], commit: str) -> None:
        """Get the files of a revision into the folder; goes on with what is half there."""
        self._api.download_repo(
            request["name"], request["kind"], revision=commit, local_dir=request["folder"],
            allow_patterns=request["include"] or None, ignore_patterns=request["exclude"] or None, max_workers=AT_ONCE,
        )  # fmt: skip


HUBS: dict[str, type[HuggingFace] | type[ModelScope]] = {"huggingface": HuggingFace, "modelscope": ModelScope}
# what the clients raise, by name: their classes move between releases
_BY_NAME = {
    "GatedRepoError": GATED,
    "RevisionNotFoundError": NO_REVISION,
    "RepositoryNotFoundError": NOT_FOUND,
    "NotExistError": NOT_FOUND,
    "AuthenticationError": DENIED,
    "PermissionDeniedError": DENIED,
    "OfflineModeIsEnabled": TOLD_OFFLINE,
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


def fault_of(error: BaseException) -> tuple[str, str]:
    """(what kind of fault it is, what the client said in one line)"""
    full = disk_full(error)
    if full is not None:
        return DISK_FULL, str(full.strerror)
    failed = getattr(error, "failed_files", None)
    if isinstance(failed, dict) and failed:
        # several files failed, each for a reason of its own: the first stands for all
        name, first = next(iter(failed.items()))
        kind, text = fault_of(first)
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
    # what the system said stands at the end of a long chain of wrappers' words
    system = re.search(r"\[Errno -?\d+\] [^'\"()\[\]]+", str(error))
    if system:
        return system[0].strip()
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def serve(requests: TextIO, answers: TextIO) -> None:
    """One request from `requests` to its end."""

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
        # the caller holds the other end as long as it lives
        threading.Thread(target=lambda: (requests.read(), os._exit(1)), daemon=True).start()
        hub.fetch(request, commit)
        say(done=True)
    except BaseException as error:
        if os.environ.get("QWEN3VL_DEBUG") == "1":
            raise
        kind, text = fault_of(error)
        say(fault=kind, text=text, address=getattr(hub, "address", ""))


def main() -> None:
    """Standard output is the caller's alone: whatever a client prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for name, value in QUIET.items():
        os.environ[name] = value
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    serve(sys.stdin, answers)
    answers.close()
    # threads of the clients are waited for otherwise
    os._exit(0)


if __name__ == "__main__":
    main()
