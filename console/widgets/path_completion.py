"""Completion of paths. Blocking; imports no Textual."""

from __future__ import annotations

import os
from pathlib import Path

MOST = 2000
"""Largest number of entries of a folder that are read."""


def candidates(text: str, folders_only: bool = True) -> list[str]:
    """Paths that begin with `text`, in the same form (`~`, relative), folders with a trailing slash; hidden ones only if asked for."""
    folder, _, begin = text.rpartition("/")
    parent = Path(os.path.expanduser(folder + "/" if "/" in text else ".") or "/")
    paths = []
    try:
        with os.scandir(parent) as entries:
            for count, entry in enumerate(entries):
                if count >= MOST:
                    break
                name = entry.name
                if not name.startswith(begin) or (name.startswith(".") and not begin.startswith(".")) or not name.isprintable():
                    continue
                try:
                    is_folder = entry.is_dir()
                except OSError:
                    continue
                if is_folder or not folders_only:
                    paths.append((folder + "/" if "/" in text else "") + name + ("/" if is_folder else ""))
    except (OSError, ValueError):
        return []
    return sorted(paths, key=lambda path: (not path.endswith("/"), path))


def complete(text: str, folders_only: bool = True) -> tuple[str | None, list[str]]:
    """(the longest common completion, or the first candidate if there is none; None without candidates, all candidates)."""
    paths = [path for path in candidates(text, folders_only) if path != text]
    if not paths:
        return None, []
    common = os.path.commonprefix(paths)  # noqa: RUF071 - by characters is what a completion is
    return (common if len(common) > len(text) else paths[0]), paths
