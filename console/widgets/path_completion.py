"""Completion of paths. Blocking; imports no Textual."""

from __future__ import annotations

import os
from pathlib import Path

MOST = 2000
"""Largest number of entries of a folder that are read."""


def candidates(text: str, folders_only: bool = True) -> list[str]:
    """Paths that begin with `text`, in the same form (`~`, relative), folders with a trailing slash; hidden ones only if asked for."""
    folder, _, begin = text.rpartition("/")
    where = Path(os.path.expanduser(folder + "/" if "/" in text else ".") or "/")
    found = []
    try:
        with os.scandir(where) as entries:
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
                    found.append((folder + "/" if "/" in text else "") + name + ("/" if is_folder else ""))
    except (OSError, ValueError):
        return []
    return sorted(found, key=lambda path: (not path.endswith("/"), path))


def complete(text: str, folders_only: bool = True) -> tuple[str | None, list[str]]:
    """(the longest common completion, or the first candidate if there is none; None without candidates, all candidates)."""
    found = [path for path in candidates(text, folders_only) if path != text]
    if not found:
        return None, []
    common = os.path.commonprefix(found)  # noqa: RUF071 - by characters is what a completion is
    return (common if len(common) > len(text) else found[0]), found
