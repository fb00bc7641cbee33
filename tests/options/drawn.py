"""Values of options for property tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from qwen3vl_core.options import Option


def admitted(option: Option, words: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Any value that the option's own rule allows. words: values of text options."""
    if option.choices:
        one: st.SearchStrategy[Any] = st.sampled_from(option.choices)
    elif option.type is bool:
        one = st.booleans()
    elif option.type is int:
        one = st.integers(int(option.minimum or 0), int(option.maximum or 10**6))
    elif option.type is float:
        one = st.floats(option.minimum or 0.0, option.maximum or 1e3, allow_nan=False)
    elif option.secret:
        one = st.sampled_from(("none", "env:A_HOOK", "saved:0123456789ab"))  # a URL is recorded as another text
    else:
        one = words
    return st.lists(one, min_size=1, max_size=3) if option.many else one
