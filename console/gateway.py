"""The address at which a browser reaches a server of this machine through a gateway, such as JupyterLab's proxy on a cloud notebook."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from qwen3vl_core.errors import RequestError
from qwen3vl_core.language import filled

PORT = "{port}"
"""Stands for the server's port in an address."""


class Gateway(NamedTuple):
    """Where a browser reaches the server."""

    address: str
    """With a slash at its end."""

    @property
    def origin(self) -> str:
        """As browsers name the pages of this address."""
        parts = urlsplit(self.address)
        return f"{parts.scheme}://{parts.netloc}".lower()


def gateway(address: str, port: int) -> Gateway:
    """The gateway at an address, in which `{port}` is the server's port. Raises RequestError for what is no such address."""
    whole = address.replace(PORT, str(port))
    example = f"https://gateway.example/me/proxy/{PORT}/"
    try:
        parts = urlsplit(whole)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None and parts.port != 0
    except ValueError:
        valid, parts = False, urlsplit("")
    if not valid or parts.query or parts.fragment or re.search(r"[\s\x00-\x1f\"'<>\\]", whole):
        raise RequestError(filled("--behind-proxy {}: must be http(s)://HOST/PATH as the browser has it; for example {}", address, example))
    return Gateway(whole.rstrip("/") + "/")


def cloud_notebook(environment: Mapping[str, str], port: int) -> Gateway | None:
    """The gateway of the cloud notebook (DSW) that this machine is; None elsewhere."""
    name, region = environment.get("JUPYTER_NAME", ""), environment.get("REGION") or environment.get("dsw_region", "")
    if not re.fullmatch(r"dsw-[\w-]+", name) or not re.fullmatch(r"[a-z]+(-[a-z0-9]+)+", region):
        return None
    return Gateway(f"https://dsw-gateway-{region}.data.aliyun.com/{name}/proxy/{port}/")
