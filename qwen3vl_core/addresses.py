"""Addresses without the secrets in them: users, passwords, tokens and signatures are neither recorded nor written to a log. Standard
library only."""

from __future__ import annotations

import re

HIDDEN = "***"
_USER = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]{0,30}://)[^/\s@?#'\"]{1,2000}@")
_PARAMETER = re.compile(
    r"([?&;#](?:[\w.-]{0,40}(?:token|secret|passw(?:or)?d|signature|credential|api[_-]?key|access[_-]?key)[\w.-]{0,40}|key|sig|sign|auth|pwd)=)"
    r"[^&#\s'\"]{1,4000}",
    re.IGNORECASE,
)
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


def without_secrets(text: str) -> str:
    """The text with `***` for the user and password of each address in it, for the values of parameters that are secrets by their names,
    and for tokens of Hugging Face."""
    if "://" not in text and "hf_" not in text:
        return text
    return _HUB_TOKEN.sub(HIDDEN, _PARAMETER.sub(rf"\1{HIDDEN}", _USER.sub(rf"\1{HIDDEN}@", text)))
