"""Widgets whose `help` is about them, not about the five hundred names that ipywidgets gives every widget."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from traitlets import MetaHasTraits


class Brief(MetaHasTraits):
    """Class of a widget's class: `help` lists the public names that this package defines. `dir`, and so completion, lists all."""

    def __dir__(cls) -> Iterable[str]:
        names = super().__dir__()
        if sys._getframe(1).f_globals.get("__name__") != "inspect":
            return names
        own = {name for each in cls.__mro__ if each.__module__.startswith("console.") for name in vars(each)}
        return [name for name in names if name in own and not name.startswith("_")]
