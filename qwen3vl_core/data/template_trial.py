"""Renders a chat template for the first time in a process of its own, with bounded memory and CPU time.

A template is a program: `{% set x = x ~ x %}` in a loop takes all memory, and a large power never returns to the interpreter, so that no
signal ends it. The process imports jinja2 alone, and is ended by the kernel.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from qwen3vl_core import limits
from qwen3vl_core.formats import quantity

TRIED = {"4d4943feeaf2ce3dcbf999977bb39731a43a6fe2c5b41d0a3d53c8781fe32d0e"}
"""SHA-256 of templates that end: Qwen3-VL's own, and those that this process has tried."""
TOO_LARGE = 3
_WAIT = 60
"""Seconds by the clock for each of CPU time, on a machine that is busy."""


def try_template(template: str, conversations: list[list[dict[str, Any]]]) -> str | None:
    """What a template takes too much of, as the rest of a sentence that begins with it; None for one that ends, or fails, in time."""
    key = hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()
    if key in TRIED:
        return None
    seconds, most = limits.TEMPLATE_SECONDS, limits.TEMPLATE_BYTES
    given = json.dumps({"template": template, "conversations": conversations, "seconds": seconds, "bytes": most}).encode()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "MALLOC_ARENA_MAX": "1"}
    try:
        child = subprocess.run(
            [sys.executable, "-m", __name__], input=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
            timeout=_WAIT * seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"takes over {_WAIT * seconds} s for a short conversation"
    if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"takes over {seconds} s for a short conversation"
    if child.returncode == TOO_LARGE:
        return f"takes over {quantity(most, 'B')} of memory for a short conversation"
    TRIED.add(key)
    return None


def main() -> int:
    """Render the conversations of standard input; the exit status says whether the memory was enough. What the template says is not
    told: the caller renders it itself next, and reports its errors."""
    given = json.load(sys.stdin)
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """The tag around an assistant's text, without effect here."""

        tags = {"generation"}  # noqa: RUF012 - as jinja has it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def refuse(text: str) -> None:
        raise jinja2.TemplateError(text)

    seconds, most = given["seconds"], given["bytes"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if os.path.exists("/proc/self/statm") else 0
    resource.setrlimit(resource.RLIMIT_AS, (used + most, used + most))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False)
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
    try:
        template = environment.from_string(given["template"])
        for messages in given["conversations"]:
            for prompt in (False, True):
                if len(template.render(messages=messages, add_generation_prompt=prompt, tools=None)) > most:
                    return TOO_LARGE
    except MemoryError:
        return TOO_LARGE
    except Exception:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
