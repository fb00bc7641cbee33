"""The arguments that a program saved beside a checkpoint's weights: read for their plain values, nothing they name is called.

Megatron-Core keeps them in `common.pt`, from 0.19 on among the shards as `common_state`. They hold classes of the program that wrote them;
each is replaced by an inert one of ours, and those of modules that have no place in a checkpoint are rejected.
"""

from __future__ import annotations

import argparse
import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

from qwen3vl_core import limits
from qwen3vl_core.checkpoint import torch_dist
from qwen3vl_core.checkpoint.dcp_metadata import Table
from qwen3vl_core.checkpoint.pickle_scan import check_pickle
from qwen3vl_core.files import open_regular

# of each, every class is replaced by an inert one
_PROGRAMS = ("megatron", "torch", "numpy", "collections", "pathlib", "datetime", "signal", "transformers", "swift", "mcore_bridge")
_BUILTINS = {"set": set, "frozenset": frozenset, "slice": slice, "complex": complex, "bytearray": Table, "getattr": Table}
_PLAIN: dict[str, dict[str, Any]] = {
    "argparse": {"Namespace": argparse.Namespace}, "collections": {"OrderedDict": OrderedDict}, "builtins": _BUILTINS,
    "_codecs": {"encode": Table},
}  # fmt: skip


class _Inert(Table):
    """A value of a class that is not loaded. Also takes items, as a dictionary's or a list's do."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    append = extend


class _PlainValues(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _PLAIN.get(module, {}).get(name)
        if known is not None:
            return known
        if module.split(".")[0] in _PROGRAMS:
            return _Inert
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, value: Any) -> Any:
        # a tensor's numbers
        return None


def read_arguments(data: Path, reader: torch_dist.RegionReader | None = None) -> dict[str, Any]:
    """The saved arguments by name; empty where there are none. Raises RequestError for what cannot be read or has no place there."""
    file = data / "common.pt"
    try:
        blob: Any = open_regular(file, links=True)
    except FileNotFoundError:
        if reader is None or reader.common_key is None:
            return {}
        stored = reader.objects[reader.common_key]
        file, blob = reader.file_of(stored), io.BytesIO(reader.bytes_of(stored))
    except OSError as error:
        raise torch_dist.DamagedError(f"{file}: cannot be read ({error.strerror}); copy the checkpoint again") from None
    try:
        with blob, zipfile.ZipFile(blob) as archive:
            entry = next(info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
            if entry.file_size > limits.SAVED_ARGUMENTS:
                raise ValueError("too large")
            stream: Any
            with archive.open(entry) as stream:
                stream._expected_crc = None  # ours have no checksums in the archive; the digests beside it tell damage
                table = stream.read(limits.SAVED_ARGUMENTS)
        check_pickle(table)
        values = _PlainValues(io.BytesIO(table)).load()
    except (Exception, MemoryError) as error:  # whatever damage makes the archive or the pickle raise
        raise torch_dist.unsafe(file, error) from None
    if isinstance(values, list) and len(values) == 1:
        values = values[0]
    args = values.get("args") if isinstance(values, dict) else None
    return dict(vars(args)) if isinstance(args, argparse.Namespace) else {}
