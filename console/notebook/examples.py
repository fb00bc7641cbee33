"""Copies of the example notebooks: made, and refreshed after an upgrade without losing what the user changed."""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from console.runs import plan_record
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import read_small, write_text

INSTALLED = Path("share") / "qwen3vl" / "notebooks"
RECORD = ".qwen3vl-examples.json"
"""File beside the copies: the digest of each as it was copied."""
NEW = ".new.ipynb"
"""End of the name of a new version beside a copy that was changed."""
LARGEST = 64 << 20
"""Bytes of a notebook with its outputs that are read to see whether it was changed; a larger one was."""


class Copied(NamedTuple):
    """What happened to the copies."""

    folder: Path
    names: list[str]
    """All notebooks of the folder."""
    refreshed: list[str]
    """Unchanged copies of an older version, which were replaced."""
    beside: list[str]
    """New versions that were put beside a copy that differs."""

    @property
    def lines(self) -> list[str]:
        """What a person is told about the refresh."""
        told = [f"{name}: replaced by the new version, as it was unchanged" for name in self.refreshed]
        return told + [f"{name}: the new version; yours differs and is kept" for name in self.beside]


def examples() -> Path:
    """The folder of the example notebooks, in the source tree or the installation. Raises RequestError."""
    root = plan_record.source_root()
    folders = [root / "notebooks"] if root else []
    folders.append(Path(sysconfig.get_path("data")) / INSTALLED)
    for folder in folders:
        if any(folder.glob("*.ipynb")):
            return folder
    raise RequestError(f"{folders[0]}: no example notebooks in it; install the package again, or give --dir with your own")


def copy_examples(folder: Path, kernel: Mapping[str, str] | None = None, source: Path | None = None) -> Copied:
    """Copy missing examples into a folder, and refresh those that are older and unchanged. kernel: the `kernelspec` of the copies'
    metadata. source: folder of the examples. Raises RequestError."""
    refreshed, beside = [], []
    source = source or examples()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = _record(folder)
        for example in sorted(source.glob("*.ipynb")):
            notebook = json.loads(example.read_text(encoding="utf-8"))
            if kernel is not None:
                notebook["metadata"]["kernelspec"] = dict(kernel)
            target, digest = folder / example.name, _digest(notebook)
            if _changed(target, known.get(target.name), digest):
                if known.get(example.name) == digest:
                    continue  # changes of this version, or it was put beside them before
                known[example.name] = digest
                target = folder / (example.stem + NEW)
                if _changed(target, known.get(target.name), digest):
                    continue
                beside.append(target.name)
            elif target.exists():
                if (
                    _read(target)["metadata"].get("kernelspec") == notebook["metadata"].get("kernelspec")
                    and _digest(_read(target)) == digest
                ):
                    known[target.name] = digest
                    continue
                refreshed += [target.name] if known.get(target.name, digest) != digest else []
            write_text(target, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
            known[target.name] = digest
        write_text(folder / RECORD, json.dumps(known, indent=1) + "\n")
    except OSError as error:
        raise RequestError(f"--dir {folder}: {error.strerror}; choose a folder that you can write to") from None
    return Copied(folder, sorted(path.name for path in folder.glob("*.ipynb")), refreshed, beside)


def _record(folder: Path) -> dict[str, str]:
    try:
        known = json.loads(read_small(folder / RECORD, LARGEST))
    except (OSError, ValueError):
        return {}
    return {str(name): str(digest) for name, digest in known.items()} if isinstance(known, dict) else {}


def _digest(notebook: Any) -> str:
    """The digest of what a person sees of a notebook: cells and outputs. JupyterLab changes the rest whenever it saves."""
    cells = [(cell["cell_type"], "".join(cell["source"]), bool(cell.get("outputs"))) for cell in notebook["cells"]]
    return sha256(json.dumps(cells).encode()).hexdigest()


def _read(file: Path) -> Any:
    return json.loads(read_small(file, LARGEST))


def _changed(file: Path, *unchanged: str | None) -> bool:
    """Whether a file is there with a digest other than these."""
    if not os.path.lexists(file):
        return False
    try:
        return _digest(_read(file)) not in unchanged
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RequestError):
        return True  # whatever it is, it is no copy of ours
