"""`qwen3vl download`: a model or a dataset from a hub, with progress, whole or not there. Imports no torch.

The files come into `DIR.tmp` and are renamed to `DIR` when all of them are there. A download that was interrupted stays,
and the same command goes on with it. The clients do the transfer (`hubs`); the progress is what has come to the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
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
from qwen3vl_core.data import hubs
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import UNFINISHED, need_space, write_text
from qwen3vl_core.formats import duration, quantity
from qwen3vl_core.options import DownloadOptions, options_of
from qwen3vl_core.progress import Progress

RECORD = ".qwen3vl-download.json"
"""In the folder: what it is a download of."""
LOOK_SECONDS = 0.2
_NAMES = {"huggingface": "Hugging Face", "modelscope": "ModelScope"}
_CLIENTS = {"huggingface": "huggingface_hub", "modelscope": "modelscope-hub"}
_ADDRESSES = {"huggingface": "HF_ENDPOINT", "modelscope": "MODELSCOPE_DOMAIN"}
_LOGIN = {"huggingface": "hf auth login", "modelscope": "modelscope login"}
_OTHER = {"huggingface": "modelscope", "modelscope": "huggingface"}
# of the clients' own, beside the repository's files
_CLIENTS_FOLDERS = (hubs.HALVES, ".cache", "._____temp", ".msc", ".mv")


def run(options: DownloadOptions) -> None:
    """Get what `options` ask for. Raises RequestError for what is not there, WorkError when the hub or the disk fails."""
    for declared in options_of(DownloadOptions):
        value = getattr(options, declared.name)
        for each in value if declared.many else [value]:
            declared.check(each)
    options.name = _checked_name(options)
    target = Path(options.to).expanduser().absolute()
    wanted = {"v": 1, "hub": options.from_, "kind": options.kind, "name": options.name, "revision": options.revision,
              "include": _patterns(options.include), "exclude": _patterns(options.exclude)}  # fmt: skip
    if _there(target, wanted):
        print(f"{target}: {options.kind} {options.name} is already there; nothing to do")
        return
    begin = time.monotonic()
    with _building(target, wanted) as folder:
        record = _fetch(options, wanted, folder, target)
    size = sum(record["files"].values())
    files = f"{len(record['files']):,} file{'s' * (len(record['files']) != 1)}"
    commit = record["commit"][:12]
    print(
        f"{target}: {options.kind} {options.name} from {_NAMES[options.from_]} ({commit}), {files}, {quantity(size, 'B')} "
        f"in {duration(time.monotonic() - begin)}"
    )


def _checked_name(options: DownloadOptions) -> str:
    name = options.name.strip().strip("/")
    address = re.match(r"https?://[^/]+/(?:models/|datasets/)?(.+)", name)
    if address:
        # pasted from a browser
        name = "/".join(address[1].split("/")[:2])
    word = r"[\w][\w.-]*"
    if re.fullmatch(f"{word}/{word}", name) or (options.from_ == "huggingface" and re.fullmatch(word, name)):
        return name
    raise RequestError(f"NAME {options.name}: must be OWNER/NAME as the hub writes it; use for example Qwen/Qwen3-VL-4B-Instruct")


def _patterns(given: list[str]) -> list[str]:
    return [pattern + "*" if pattern.endswith("/") else pattern for pattern in given]


def _there(target: Path, wanted: dict[str, Any]) -> bool:
    """Whether `target` is this download, whole. Raises RequestError when something else stands there."""
    if target.is_symlink() and not target.exists():
        raise RequestError(f"--to {target}: a link to nothing; remove it or choose another folder")
    if target.exists() and not target.is_dir():
        raise RequestError(f"--to {target}: a file stands there; choose another folder")
    parent = next(p for p in target.parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RequestError(f"--to {target}: {parent} cannot be written to; choose another folder")
    if not target.exists() or not any(target.iterdir()):
        return False
    found = _record(target)
    if found is None:
        raise RequestError(f"--to {target}: already holds something that was not downloaded by this command; choose another folder")
    _check_same(target, found, wanted)
    return not _missing(target, found.get("files") or {})


def _check_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key, value in wanted.items():
        if found.get(key) != value:
            what = f"{found.get('kind')} {found.get('name')} from {_NAMES.get(str(found.get('hub')), found.get('hub'))}"
            if key not in ("hub", "kind", "name"):
                what += f" with {'another' if found.get(key) is None else found.get(key)} {key}"
            raise RequestError(f"--to {folder}: holds {what}; choose another folder, or remove that one")


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _missing(folder: Path, files: dict[str, int]) -> list[str]:
    """Files that are not there in their full length."""
    lacking = []
    for name, size in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            lacking.append(name)
    return lacking


@contextlib.contextmanager
def _building(target: Path, wanted: dict[str, Any]) -> Iterator[Path]:
    """The folder beside `target` that the files come into; it takes `target`'s place when the block ends well, and stays
    otherwise, for the next time. Raises RequestError for another download's folder, and while another process is at it."""
    folder = target.with_name(target.name + UNFINISHED)
    if target.is_dir() and any(target.iterdir()) and not folder.exists():
        # a download of this command that has lost files since
        os.rename(target, folder)
    found = _record(folder)
    if found is not None:
        _check_same(folder, found, wanted)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"--to {target}: {folder} stands in the way; remove it, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(f"--to {target}: another download is filling it; wait for that one, or choose another folder") from None
        except OSError:
            # a file system without locks: then nobody else is noticed, as without this
            pass
        try:
            yield folder
        except BaseException:
            # nothing has come: nothing is left
            if _record(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if target.is_dir():
            target.rmdir()
        os.rename(folder, target)
    finally:
        os.close(lock)


def _fetch(options: DownloadOptions, wanted: dict[str, Any], folder: Path, target: Path) -> dict[str, Any]:
    """Fill the folder by the hub's client; returns the download's record."""
    debug = os.environ.get("QWEN3VL_DEBUG") == "1"
    # this very package, wherever it was imported from
    search = os.pathsep.join(filter(None, (str(Path(qwen3vl_core.__file__).parent.parent), os.environ.get("PYTHONPATH"))))
    client = subprocess.Popen(
        [sys.executable, "-m", "qwen3vl_core.data.hubs"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=None if debug else subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": search},
        # Ctrl-C reaches the whole group: this process ends the client
        start_new_session=True,
    )  # fmt: skip
    try:
        _send(client, wanted | {"folder": str(folder)})
        listed = _answer(client, options, folder)
        files = {name: int(listed["files"][name]) for name in hubs.matching(listed["files"], wanted["include"], wanted["exclude"])}
        _check_files(files, listed["files"], options)
        total = sum(files.values())
        need_space(target, max(0, total - _come(folder)), options.kind)
        record = wanted | {"commit": str(listed["commit"]), "address": listed["address"], "files": files}
        write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")
        _send(client, {"go": True})
        with Progress("download", total=total, unit="B") as progress, _watched(folder, total, progress):
            _answer(client, options, folder)
    except KeyboardInterrupt:
        if _record(folder) is not None:
            print(f"what has come is kept in {folder}; the same command goes on from there", file=sys.stderr)
        raise
    finally:
        client.kill()
        client.wait()
        for pipe in (client.stdin, client.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
    lacking = _missing(folder, files)
    if lacking:
        raise WorkError(f"{folder}: {lacking[0]} did not come whole ({len(lacking)} of {len(files)} files); run the same command again")
    for name in _CLIENTS_FOLDERS:
        if not any(PurePosixPath(file).parts[0] == name for file in files):
            shutil.rmtree(folder / name, ignore_errors=True)
    return record


def _send(client: subprocess.Popen, request: dict[str, Any]) -> None:
    assert client.stdin is not None
    # a client that has ended says why in its answer
    with contextlib.suppress(BrokenPipeError):
        client.stdin.write(json.dumps(request) + "\n")
        client.stdin.flush()


def _answer(client: subprocess.Popen, options: DownloadOptions, folder: Path) -> dict[str, Any]:
    """What the client says. Raises RequestError or WorkError for a fault."""
    assert client.stdout is not None
    line = client.stdout.readline()
    try:
        answer = json.loads(line)
    except ValueError:
        raise WorkError(
            f"download {options.name}: the client of {_NAMES[options.from_]} ended without a word (exit code {client.wait()}); "
            "QWEN3VL_DEBUG=1 shows what it prints"
        ) from None
    if "fault" in answer:
        raise _fault(answer, options, folder)
    return answer


def _fault(answer: dict[str, Any], options: DownloadOptions, folder: Path) -> Exception:
    """The error that says it in one line, with the way out."""
    hub, kind, what = options.from_, answer["fault"], f"{options.kind} {options.name}"
    where = f"{_NAMES[hub]}" + (f" ({answer['address']})" if answer.get("address") else "")
    again = f"; what has come is kept in {folder}, the same command goes on from there" if _record(folder) is not None else ""
    if kind == hubs.NOT_INSTALLED:
        return RequestError(f"--from {hub}: its client is not installed; pip install {_CLIENTS[hub]}, or use --from {_OTHER[hub]}")
    if kind == hubs.NOT_FOUND:
        other = "dataset" if options.kind == "model" else "model"
        return RequestError(
            f"{what}: {where} has no {options.kind} of that name that you may read; check the name, ask for a {other}, "
            f"or log in for one that is private: {_LOGIN[hub]}"
        )
    if kind == hubs.NO_REVISION:
        return RequestError(f"--revision {options.revision}: {where} has no such branch, tag or commit of {what}; leave it out")
    if kind == hubs.GATED:
        return RequestError(f"{what}: {where} wants its terms accepted on its page first; then: {_LOGIN[hub]}")
    if kind == hubs.DENIED:
        return RequestError(f"{what}: {where} does not let you read it ({answer['text']}); log in: {_LOGIN[hub]}")
    if kind == hubs.REFUSED:
        return RequestError(f"{what}: the client of {_NAMES[hub]} refuses it ({answer['text']}); check the name and --revision")
    if kind == hubs.TOLD_OFFLINE:
        return RequestError(f"{what}: HF_HUB_OFFLINE is set, so that nothing is downloaded; unset it{again}")
    if kind == hubs.UNREACHABLE:
        return WorkError(
            f"{what}: {where} cannot be reached ({answer['text']}); check the network, set {_ADDRESSES[hub]} to a mirror, "
            f"or use --from {_OTHER[hub]}{again}"
        )
    if kind == hubs.DISK_FULL:
        return WorkError(f"{what}: the disk of {folder} is full; free some space{again}")
    return WorkError(f"{what}: {where} failed ({answer['text']}); run the same command again{again}")


def _check_files(files: dict[str, int], listed: dict[str, int], options: DownloadOptions) -> None:
    """Raises RequestError for names that lead out of the folder, and when no file is left."""
    for name in files:
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in PurePosixPath(name).parts or name == RECORD:
            raise RequestError(
                f"{options.kind} {options.name}: holds a file named {name!r}, which no folder takes; leave it out with --exclude"
            )
    if not listed:
        raise RequestError(f"{options.kind} {options.name}: holds no file; check the name and --revision")
    if not files:
        some = ", ".join(sorted(listed)[:3])
        raise RequestError(f"--include {' '.join(options.include)}: none of {len(listed):,} files matches; there are {some}, …")


def _come(folder: Path) -> int:
    """Bytes in the folder, half a file's too."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            # renamed between the walk and the look
            with contextlib.suppress(OSError):
                if name != RECORD and not name.endswith((".metadata", ".lock", ".json.lock")):
                    size += os.lstat(os.path.join(place, name)).st_size
    return size


@contextlib.contextmanager
def _watched(folder: Path, total: int, progress: Progress) -> Iterator[None]:
    """The progress follows what comes to the disk, whichever way the client takes."""
    ended = threading.Event()
    progress.done = min(_come(folder), total)
    before = progress.done

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            progress.update(max(0, min(_come(folder), total) - progress.done))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
        progress.done = total
    finally:
        ended.set()
        thread.join()
        progress.note = f"{quantity(before, 'B')} were there" if before else ""
