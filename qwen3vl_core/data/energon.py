"""The Energon index of a folder of shards, made by API instead of by the interactive tool. Imports no torch by itself."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path

from qwen3vl_core.errors import WorkError
from qwen3vl_core.files import write_text
from qwen3vl_core.progress import Progress

FOLDER = ".nv-meta"
SPLITS = ("train", "val", "test")
DATASET_YAML = """\
# pictures and conversations as they are; a cooker makes samples of them
__module__: megatron.energon
__class__: CrudeWebdataset
"""
_NAMESPACE = uuid.UUID("5f0d6f1e-6f6c-5d0a-9b0e-3a0f7f1f2c11")


def make_index(folder: Path, shards: list[str], identity: str) -> None:
    """Write `.nv-meta` for `shards` (names in `folder`, each beginning with its split's name).

    identity: a digest of the content; the dataset's uuid is made from it, so that the same input gives the same index.
    Raises WorkError when Energon refuses a shard, OSError when the disk is full.
    """
    from megatron.energon.epathlib import EPath
    from megatron.energon.flavors import BaseWebdatasetFactory

    def counted(items: Iterator[int], total: int) -> Iterator[int]:
        for item in items:
            progress.update(1)
            yield item

    try:
        with Progress("index", total=len(shards), unit="shards") as progress, _quiet():
            BaseWebdatasetFactory.prepare_dataset(
                EPath(folder.absolute()),
                shards,
                # no backslashes and braces: the patterns are brace-expanded first
                split_parts_patterns=[(split, f"{split}-[0-9]+[.]tar") for split in SPLITS],
                tar_index_only=False,
                shuffle_seed=None,
                # several would write the samples' rows in the order in which they come to finish
                workers=1,
                progress_fn=counted,
            )
    except (SystemExit, AssertionError, sqlite3.Error) as error:
        # a worker's "no space left" arrives here as a shard without samples
        if shutil.disk_usage(folder).free < 1 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        reason = str(error) or type(error).__name__
        raise WorkError(f"{folder}: Energon could not index the shards ({reason}); nothing was left there; prepare again") from error
    write_text(folder / FOLDER / "dataset.yaml", DATASET_YAML)
    write_text(folder / FOLDER / "index.uuid", str(uuid.uuid5(_NAMESPACE, identity)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Energon prints and logs tracebacks on its way; what went wrong is raised anyway."""
    logger = logging.getLogger("megatron.energon")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
