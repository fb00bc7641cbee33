"""YAML of somebody else. Imports no YAML library until there is a file."""

from __future__ import annotations

from typing import Any

from qwen3vl_core.errors import RequestError


class NotYamlError(ValueError):
    """line: of the problem, from 1 on; None where the library does not tell."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(" ".join(str(error).split())[:200] or type(error).__name__)
        mark = getattr(error, "problem_mark", None)
        self.line: int | None = mark.line + 1 if mark else None

    @property
    def where(self) -> str:
        """` (line 3)`, or nothing."""
        return f" (line {self.line})" if self.line else ""


def load_yaml(text: str | bytes, loader: Any = None) -> Any:
    """The content of a YAML document. loader: a class below SafeLoader, which it is by default. Raises NotYamlError, whatever the library
    raises; a RequestError of the loader's own comes through."""
    import yaml

    try:
        return yaml.load(text, loader or yaml.SafeLoader)
    except RequestError:
        raise
    # values such as `!!bool x` or a number of 5,000 digits end in errors of the interpreter, which the library does not translate
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise NotYamlError(error) from None
