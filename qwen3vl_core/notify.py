"""Where messages about runs go: webhooks and the command of a hook, how they are written, kept and shown without their secrets.

An address is a URL, with its flavour before it where the host does not tell (`slack:https://…`), `env:NAME` for addresses in an environment
variable, or `saved:KEY` for one whose URL is in the user's own file: a URL is a password, so no record, log or command holds it.
Standard library only; YAML is imported where there is a settings file.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import re
import shlex
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from qwen3vl_core import limits
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import open_regular
from qwen3vl_core.problems import Problem
from qwen3vl_core.settings_path import settings_file
from qwen3vl_core.yaml_text import NotYamlError, load_yaml

DINGTALK, FEISHU, WECOM, SLACK, JSON = "dingtalk", "feishu", "wecom", "slack", "json"
FLAVOURS = (DINGTALK, FEISHU, WECOM, SLACK, JSON)
HOSTS = {
    "oapi.dingtalk.com": DINGTALK, "open.feishu.cn": FEISHU, "open.larksuite.com": FEISHU, "qyapi.weixin.qq.com": WECOM,
    "hooks.slack.com": SLACK,
}  # fmt: skip
"""What an address is, by its host."""
NONE, ENVIRONMENT, SAVED = "none", "env:", "saved:"
DONE, FAILED, STOPPED, RESTART, STALLED, MOVING, NAN, TEST = "done", "failed", "stopped", "restart", "stalled", "moving", "nan", "test"
EVENTS = {
    DONE: "all steps are done", FAILED: "the run failed, or could not be started", STOPPED: "it was asked to stop, and has",
    RESTART: "it failed, and is restarted", STALLED: "no step comes any more", MOVING: "steps come again",
    NAN: "a loss or gradient norm is NaN or infinite; the next of these is sent 10 minutes later at the earliest",
    TEST: "of qwen3vl notify",
}  # fmt: skip
"""What is sent."""
MOST_TEXT = 600
"""Characters of a message's text; WeCom takes 2048 bytes."""
_SECRET = "secret"


class Address(NamedTuple):
    """A webhook."""

    flavour: str
    url: str
    """With all its secrets."""
    secret: str = ""
    """By which DingTalk and Feishu sign; the value of `secret` in the URL."""

    @property
    def shown(self) -> str:
        """Flavour and host, which hold no secret."""
        host = urlsplit(self.url).hostname or ""
        return f"{self.flavour} at {host}"


class Request(NamedTuple):
    """What is posted."""

    url: str
    body: bytes
    headers: dict[str, str]


class Receivers(NamedTuple):
    """Everybody who is told."""

    addresses: tuple[Address, ...] = ()
    command: tuple[str, ...] = ()
    """The words of the hook's command."""
    problems: tuple[str, ...] = ()
    """A line for each address that cannot be used; none shows a secret."""

    def __bool__(self) -> bool:
        return bool(self.addresses or self.command)

    @property
    def shown(self) -> str:
        """For people: who is told."""
        return ", ".join([*(address.shown for address in self.addresses), *([f"command {self.command[0]}"] if self.command else [])])


def addresses_file() -> Path:
    """The path of the user's saved addresses, which only the user may read."""
    return settings_file().with_name("addresses.json")


# reading addresses


def _refused(text: str, rule: str) -> RequestError:
    return RequestError(Problem("notify-address", "notify", shown(text), {"rule": rule}))


def parse_url(text: str) -> Address:
    """An address that is written out. Raises RequestError, whose line shows no secret."""
    flavour, colon, rest = text.partition(":")
    named = flavour in FLAVOURS and bool(colon)
    url = rest if named else text
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        raise _refused(text, "is no URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise _refused(text, "must be a URL with http:// or https://")
    query = parse_qsl(parts.query, keep_blank_values=True)
    kind = flavour if named else HOSTS.get(parts.hostname, JSON)
    secret = next((value for name, value in query if name == _SECRET), "") if kind in (DINGTALK, FEISHU) else ""
    if secret:
        query = [(name, value) for name, value in query if name != _SECRET]
        url = urlunsplit(parts._replace(query=urlencode(query)))
    return Address(kind, url, secret)


def check(text: str) -> None:
    """Raises RequestError for an address that no machine could use. Looks at no variable and no file."""
    if text.startswith(ENVIRONMENT):
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text[len(ENVIRONMENT) :]):
            raise _refused(text, "env: must be followed by the name of an environment variable")
    elif text.startswith(SAVED):
        if not re.fullmatch(r"[0-9a-f]{12}", text[len(SAVED) :]):
            raise _refused(text, "saved: must be followed by the key of a saved address")
    elif text != NONE:
        parse_url(text)


def check_command(text: str) -> tuple[str, ...]:
    """The words of a hook's command; no shell reads them. Raises RequestError."""
    try:
        words = tuple(shlex.split(text))
    except ValueError:
        raise RequestError(Problem("notify-command", "notify_command", text, {"rule": "a quotation mark is not closed"})) from None
    if not words or "\0" in text:
        raise RequestError(Problem("notify-command", "notify_command", text, {"rule": "names no program"}))
    return words


def shown(text: str) -> str:
    """An address as it is written, without what may be secret."""
    if text == NONE or text.startswith((ENVIRONMENT, SAVED)):
        return text
    flavour, colon, rest = text.partition(":")
    prefix, url = (f"{flavour}:", rest) if flavour in FLAVOURS and colon else ("", text)
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname:
            return f"{prefix}{parts.scheme}://{parts.hostname}/…"
    return f"{prefix}…"


# what is kept


def _saved() -> dict[str, str]:
    try:
        with open(addresses_file(), "rb") as file:
            value = json.loads(file.read(limits.PLAN_FILE))
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: text for key, text in value.items() if isinstance(text, str)} if isinstance(value, dict) else {}


def reference(text: str) -> str:
    """How an address is recorded: as it is written, or, for a URL, as `saved:KEY`, with the URL in the user's own file. Where that
    cannot be written the key is returned all the same: a record never holds the URL."""
    if text == NONE or text.startswith((ENVIRONMENT, SAVED)):
        return text
    key = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]
    known = _saved()
    if known.get(key) != text:
        with contextlib.suppress(OSError):
            _write(known | {key: text})
    return SAVED + key


def _write(addresses: Mapping[str, str]) -> None:
    file = addresses_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(json.dumps(addresses, indent=1) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, file)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def from_settings(file: Path | None = None) -> tuple[list[str], str]:
    """(addresses, command) of the user's settings; what is damaged there counts as missing, as the console names it."""
    try:
        with open_regular(file or settings_file(), links=True) as stream:
            text = stream.read(limits.PLAN_FILE)
    except OSError:
        return [], ""
    try:
        content = load_yaml(text)
    except NotYamlError:
        return [], ""
    if not isinstance(content, dict):
        return [], ""
    addresses, command = content.get("notify"), content.get("notify_command")
    listed = addresses if isinstance(addresses, list) else [addresses]
    return [item for item in listed if isinstance(item, str)], command if isinstance(command, str) else ""


def receivers(addresses: Iterable[str], command: str | None = None, *, settings: bool = True) -> Receivers:
    """Who is told: these addresses and this command, else those of the user's settings. `none` is nobody. Never raises."""
    texts, words = list(addresses), command or ""
    if not texts and not words and settings:
        texts, words = from_settings()
    known: dict[Address, None] = {}
    problems: list[str] = []
    for text in texts:
        try:
            check(text)
            if text == NONE:
                continue
            if text.startswith(ENVIRONMENT):
                urls = os.environ.get(text[len(ENVIRONMENT) :], "").split()
                if not urls:
                    problems.append(f"--notify {text}: this environment variable is not set; nobody is told by it")
            elif text.startswith(SAVED):
                urls = [url for url in [_saved().get(text[len(SAVED) :])] if url]
                if not urls:
                    problems.append(f"--notify {text}: not in {addresses_file()} of this user; give its URL again, or env:NAME")
            else:
                urls = [text]
            known |= dict.fromkeys(map(parse_url, urls))
        except RequestError as error:
            problems.append(str(error))
    program: tuple[str, ...] = ()
    if words and words != NONE:
        try:
            program = check_command(words)
        except RequestError as error:
            problems.append(str(error))
    return Receivers(tuple(known), program, tuple(problems))


# what is sent


def text_of(message: Mapping[str, Any]) -> str:
    """The message for people, a few short lines."""
    head = f"{message.get('run', 'qwen3vl')} on {message.get('host', '')}: {message.get('event', '')}"
    lines = [head, str(message.get("text") or "")]
    if isinstance(message.get("step"), int):
        of = f" of {message['train_iters']}" if isinstance(message.get("train_iters"), int) else ""
        loss = message.get("loss")
        lines.append(f"step {message['step']}{of}" + (f", loss {loss:.4f}" if isinstance(loss, float) else ""))
    text = "\n".join(filter(None, lines))
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"


def request(address: Address, message: Mapping[str, Any], now: float | None = None) -> Request:
    """What is posted to an address. now: Unix seconds, which DingTalk and Feishu sign."""
    now = time.time() if now is None else now
    parts = urlsplit(address.url)
    url, headers = address.url, {"Content-Type": "application/json; charset=utf-8", "User-Agent": "qwen3vl"}
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    text = text_of(message)
    body: dict[str, Any]
    if address.flavour in (DINGTALK, WECOM):
        body = {"msgtype": "text", "text": {"content": text}}
    elif address.flavour == FEISHU:
        body = {"msg_type": "text", "content": {"text": text}}
    elif address.flavour == SLACK:
        body = {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}
    else:
        body = dict(message)
    if address.secret and address.flavour == DINGTALK:
        stamp = str(round(now * 1000))
        signed = _signature(address.secret, f"{stamp}\n{address.secret}")
        url += f"{'&' if urlsplit(url).query else '?'}timestamp={stamp}&sign={quote(signed, safe='')}"
    elif address.secret and address.flavour == FEISHU:
        stamp = str(int(now))
        # the key is what others sign, and nothing is signed with it
        body = {"timestamp": stamp, "sign": _signature(f"{stamp}\n{address.secret}", ""), **body}
    return Request(url, json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"), headers)


def _signature(key: str, text: str) -> str:
    return base64.b64encode(hmac.new(key.encode(), text.encode(), hashlib.sha256).digest()).decode()


def refusal(address: Address, answer: bytes) -> str | None:
    """Why a service did not take a message, though it answered 200; None where it did."""
    if address.flavour not in (DINGTALK, FEISHU, WECOM):
        return None
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return "its answer is not JSON: another service?"
    if not isinstance(value, dict):
        return "its answer is not an object: another service?"
    code = next((value[name] for name in ("errcode", "code", "StatusCode") if name in value), None)
    if code == 0:
        return None
    words = " ".join(str(value.get("errmsg") or value.get("msg") or value.get("StatusMessage") or "").split())
    return f"refused with code {str(code)[:20]}" + (f" ({words[:200]})" if words else "")
