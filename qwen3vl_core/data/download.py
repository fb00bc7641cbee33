"""`qwen3vl download`: a model or a dataset from a hub, with progress, all or nothing. Imports no torch.

Files are written to `DIR.tmp`, which is renamed to `DIR` once it is complete. An interrupted download is kept, and the same
command resumes it. The hubs' clients do the transfer (`hubs`); the progress is measured on disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import qwen3vl_core
from qwen3vl_core.addresses import without_secrets
from qwen3vl_core.data import hub_choice, hubs
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import UNFINISHED, folder_lock, need_space, to_disk, tree_to_disk, write_text
from qwen3vl_core.formats import duration, quantity
from qwen3vl_core.language import filled, tr
from qwen3vl_core.options import DownloadOptions, options_of
from qwen3vl_core.progress import Progress

RECORD = ".qwen3vl-download.json"
"""File in the folder that records what was downloaded."""
AUTO = "auto"
POLL_SECONDS = 0.2
_NAMES = {"huggingface": "Hugging Face", "modelscope": "ModelScope"}
_CLIENTS = {"huggingface": "huggingface_hub", "modelscope": "modelscope-hub"}
_ADDRESSES = {"huggingface": "HF_ENDPOINT", "modelscope": "MODELSCOPE_DOMAIN"}
_LOGIN = {"huggingface": "hf auth login", "modelscope": "modelscope login"}
_OTHER = {"huggingface": "modelscope", "modelscope": "huggingface"}
# created by the clients next to the repository's files
_CLIENTS_FOLDERS = (hubs.PARTIAL, ".cache", "._____temp", ".msc", ".mv")


def run(options: DownloadOptions) -> None:
    """Download what `options` name. Raises RequestError if the hub does not have it, WorkError when the hub or the disk fails."""
    for declared in options_of(DownloadOptions):
        value = getattr(options, declared.name)
        for each in value if declared.many else [value]:
            declared.check(each)
    options.name = _checked_name(options)
    target = Path(options.to).expanduser().absolute()
    hub = options.from_ if options.from_ != AUTO else _hub_of(target)
    options = dataclasses.replace(options, from_=hub or "huggingface")
    request = {"v": 1, "hub": options.from_, "kind": options.kind, "name": options.name, "revision": options.revision,
              "include": _patterns(options.include), "exclude": _patterns(options.exclude)}  # fmt: skip
    if _is_complete(target, request):
        print(f"{target}: {options.kind} {options.name} is already there; nothing to do")
        return
    if hub is None and hub_choice.choose() == "modelscope":
        options.from_ = request["hub"] = "modelscope"
        print(tr("Hugging Face cannot be reached: from ModelScope; --from huggingface insists on the other"), file=sys.stderr)
        options.name = _checked_name(options)
    begin = time.monotonic()
    with _building(target, request) as folder:
        record = _fetch(options, request, folder, target)
    size = sum(record["files"].values())
    files = f"{len(record['files']):,} file{'s' * (len(record['files']) != 1)}"
    commit = record["commit"][:12]
    print(
        f"{target}: {options.kind} {options.name} from {_NAMES[options.from_]} ({commit}), {files}, {quantity(size, 'B')} "
        f"in {duration(time.monotonic() - begin)}"
    )


def _hub_of(target: Path) -> str | None:
    """The hub of what is in the folder, or in the one that an interrupted download has left; None for neither."""
    record = _record(target) or _record(target.with_name(target.name + UNFINISHED))
    return record["hub"] if record is not None and record.get("hub") in _NAMES else None


def _checked_name(options: DownloadOptions) -> str:
    name = options.name.strip().strip("/")
    address = re.match(r"https?://[^/]+/(?:models/|datasets/)?(.+)", name)
    if address:
        # pasted from a browser
        name = "/".join(address[1].split("/")[:2])
    word = r"[\w][\w.-]*"
    if re.fullmatch(f"{word}/{word}", name) or (options.from_ != "modelscope" and re.fullmatch(word, name)):
        return name
    raise RequestError(filled("NAME {}: must be OWNER/NAME as the hub writes it; use for example Qwen/Qwen3-VL-4B-Instruct", options.name))


def _patterns(given: list[str]) -> list[str]:
    return [pattern + "*" if pattern.endswith("/") else pattern for pattern in given]


def _is_complete(target: Path, request: dict[str, Any]) -> bool:
    """Whether `target` holds this download completely. Raises RequestError when it holds something else."""
    if target.is_symlink() and not target.exists():
        raise RequestError(filled("--to {}: a broken link; remove it or choose another folder", target))
    if target.exists() and not target.is_dir():
        raise RequestError(filled("--to {}: a file stands there; choose another folder", target))
    parent = next(p for p in target.parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RequestError(filled("--to {}: {} cannot be written to; choose another folder", target, parent))
    if not target.exists() or not any(target.iterdir()):
        return False
    record = _record(target)
    if record is None:
        raise RequestError(
            filled("--to {}: already holds something that was not downloaded by this command; choose another folder", target)
        )
    _check_same(target, record, request)
    return not _missing(target, record.get("files") or {})


def _check_same(folder: Path, record: dict[str, Any], request: dict[str, Any]) -> None:
    for key, value in request.items():
        if record.get(key) != value:
            what = f"{record.get('kind')} {record.get('name')} from {_NAMES.get(str(record.get('hub')), record.get('hub'))}"
            if key not in ("hub", "kind", "name"):
                what += f" with {'another' if record.get(key) is None else record.get(key)} {key}"
            raise RequestError(filled("--to {}: holds {}; choose another folder, or remove that one", folder, what))


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _missing(folder: Path, files: dict[str, int]) -> list[str]:
    """Files that are missing or incomplete."""
    missing = []
    for name, size in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            missing.append(name)
    return missing


@contextlib.contextmanager
def _building(target: Path, request: dict[str, Any]) -> Iterator[Path]:
    """The temporary folder next to `target` that files are written to; it is renamed to `target` when the block succeeds, and
    kept otherwise, to resume from. Raises RequestError for another download's folder, and while another process uses it."""
    folder = target.with_name(target.name + UNFINISHED)
    if target.is_dir() and any(target.iterdir()) and not folder.exists():
        # a complete download of this command that has lost files since
        os.rename(target, folder)
    record = _record(folder)
    if record is not None:
        _check_same(folder, record, request)
    # one that was killed before its record had its name has left that file alone
    elif folder.exists() and (not folder.is_dir() or any(file.name != RECORD + UNFINISHED for file in folder.iterdir())):
        raise RequestError(filled("--to {}: {} stands in the way; remove it, or choose another folder", target, folder))
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder, f"--to {target}: another download is filling it; wait for that one, or choose another folder"):
        try:
            yield folder
        except BaseException:
            # nothing was downloaded: leave nothing behind
            if _record(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        tree_to_disk(folder)
        if target.is_dir():
            target.rmdir()
        os.rename(folder, target)
        to_disk(target.absolute().parent)


def _fetch(options: DownloadOptions, request: dict[str, Any], folder: Path, target: Path) -> dict[str, Any]:
    """Download into the folder with the hub's client; returns the record of the download."""
    debug = os.environ.get("QWEN3VL_DEBUG") == "1"
    # this package, wherever it was imported from
    search = os.pathsep.join(filter(None, (str(Path(qwen3vl_core.__file__).parent.parent), os.environ.get("PYTHONPATH"))))
    client = subprocess.Popen(
        [sys.executable, "-m", "qwen3vl_core.data.hubs"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=None if debug else subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": search},
        # Ctrl-C would reach the whole process group: this process ends the client instead
        start_new_session=True,
    )  # fmt: skip
    try:
        _send(client, request | {"folder": str(folder)})
        listed = _answer(client, options, folder)
        files = {name: int(listed["files"][name]) for name in hubs.matching(listed["files"], request["include"], request["exclude"])}
        _check_files(files, listed["files"], options)
        total = sum(files.values())
        need_space(target, max(0, total - _bytes_on_disk(folder)), options.kind)
        record = request | {"commit": str(listed["commit"]), "address": without_secrets(str(listed["address"])), "files": files}
        write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")
        _send(client, {"go": True})
        with Progress("download", total=total, unit="B") as progress, _watched(folder, total, progress):
            _answer(client, options, folder)
    except KeyboardInterrupt:
        if _record(folder) is not None:
            print(f"the partial download is kept in {folder}; the same command resumes it", file=sys.stderr)
        raise
    finally:
        client.kill()
        client.wait()
        for pipe in (client.stdin, client.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
    missing = _missing(folder, files)
    if missing:
        raise WorkError(
            filled("{}: {} is incomplete ({} of {} files); run the same command again", folder, missing[0], len(missing), len(files))
        )
    for name in _CLIENTS_FOLDERS:
        if not any(PurePosixPath(file).parts[0] == name for file in files):
            shutil.rmtree(folder / name, ignore_errors=True)
    return record


def _send(client: subprocess.Popen[str], request: dict[str, Any]) -> None:
    assert client.stdin is not None
    # a client that has exited gives the reason in its answer
    with contextlib.suppress(BrokenPipeError):
        client.stdin.write(json.dumps(request) + "\n")
        client.stdin.flush()


def _answer(client: subprocess.Popen[str], options: DownloadOptions, folder: Path) -> dict[str, Any]:
    """The client's answer. Raises RequestError or WorkError if it reports an error."""
    assert client.stdout is not None
    line = client.stdout.readline()
    try:
        answer = json.loads(line)
    except ValueError:
        raise WorkError(
            filled(
                "download {}: the client of {} ended without an answer (exit code {}); QWEN3VL_DEBUG=1 shows what it prints",
                options.name,
                _NAMES[options.from_],
                client.wait(),
            )
        ) from None
    if "problem" in answer:
        raise _client_error(answer, options, folder)
    return answer


def _client_error(answer: dict[str, Any], options: DownloadOptions, folder: Path) -> Exception:
    """The error for an answer, one line with the way out."""
    hub, kind, what = options.from_, answer["problem"], f"{options.kind} {options.name}"
    server = f"{_NAMES[hub]}" + (f" ({answer['address']})" if answer.get("address") else "")
    again = f"; the partial download is kept in {folder}, the same command resumes it" if _record(folder) is not None else ""
    if kind == hubs.NOT_INSTALLED:
        return RequestError(
            filled("--from {}: its client is not installed; pip install {}, or use --from {}", hub, _CLIENTS[hub], _OTHER[hub])
        )
    if kind == hubs.NOT_FOUND:
        other = "dataset" if options.kind == "model" else "model"
        return RequestError(
            filled(
                "{}: {} has no {} of that name that you may read; check the name, ask for a {}, or log in for one that is private: {}",
                what,
                server,
                options.kind,
                other,
                _LOGIN[hub],
            )
        )
    if kind == hubs.NO_REVISION:
        return RequestError(
            filled("--revision {}: {} has no such branch, tag or commit of {}; leave it out", options.revision, server, what)
        )
    if kind == hubs.GATED:
        return RequestError(filled("{}: {} wants its terms accepted on its page first; then: {}", what, server, _LOGIN[hub]))
    if kind == hubs.DENIED:
        return RequestError(filled("{}: {} does not let you read it ({}); log in: {}", what, server, answer["text"], _LOGIN[hub]))
    if kind == hubs.REFUSED:
        return RequestError(
            filled("{}: the client of {} refuses it ({}); check the name and --revision", what, _NAMES[hub], answer["text"])
        )
    if kind == hubs.OFFLINE:
        return RequestError(filled("{}: HF_HUB_OFFLINE is set; unset it{}", what, again))
    if kind == hubs.UNREACHABLE:
        return WorkError(
            filled(
                "{}: {} cannot be reached ({}); check the network, set {} to a mirror, or use --from {}{}",
                what,
                server,
                answer["text"],
                _ADDRESSES[hub],
                _OTHER[hub],
                again,
            )
        )
    if kind == hubs.DISK_FULL:
        return WorkError(filled("{}: the disk of {} is full; free some space{}", what, folder, again))
    return WorkError(filled("{}: {} failed ({}); run the same command again{}", what, server, answer["text"], again))


def _check_files(files: dict[str, int], listed: dict[str, int], options: DownloadOptions) -> None:
    """Raises RequestError for names that lead out of the folder, and when no file is left."""
    for name in files:
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in PurePosixPath(name).parts or name == RECORD:
            raise RequestError(
                filled(
                    "{} {}: holds a file named {!r}, which is not a safe file name; leave it out with --exclude",
                    options.kind,
                    options.name,
                    name,
                )
            )
    if not listed:
        raise RequestError(filled("{} {}: holds no file; check the name and --revision", options.kind, options.name))
    if not files:
        some = ", ".join(sorted(listed)[:3])
        raise RequestError(
            filled("--include {}: none of {:,} files matches; there are {}, …", " ".join(options.include), len(listed), some)
        )


def _bytes_on_disk(folder: Path) -> int:
    """Bytes of the folder's files, partial ones included."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            # the file may be renamed after it was listed
            with contextlib.suppress(OSError):
                if name != RECORD and not name.endswith((".metadata", ".lock", ".json.lock")):
                    size += os.lstat(os.path.join(place, name)).st_size
    return size


@contextlib.contextmanager
def _watched(folder: Path, total: int, progress: Progress) -> Iterator[None]:
    """Update the progress from the bytes on disk, however the client transfers them."""
    ended = threading.Event()
    progress.done = min(_bytes_on_disk(folder), total)
    before = progress.done

    def poll() -> None:
        while not ended.wait(POLL_SECONDS):
            progress.update(max(0, min(_bytes_on_disk(folder), total) - progress.done))

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
        progress.done = total
    finally:
        ended.set()
        thread.join()
        progress.note = f"{quantity(before, 'B')} were downloaded before" if before else ""
