"""Problems of a request, as data. Rules create them; forms, JSON and one-key fixes read them; the text is rendered last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen3vl_core.formats import one_clear_line
from qwen3vl_core.language import ENGLISH, Filled, keyed, language, phrase, tr
from qwen3vl_core.problem_texts import TEXTS, WITH_REMEDIES

VALUES_IN_WORDS = ("advice", "help", "kind", "unit", "what", "way")
"""Values of rules that may be words of ours; a help begins with a small letter there. Others are names, numbers and what was found."""
Say = Callable[[str], str]
"""Gives one text in a language."""


@dataclass(frozen=True)
class Problem:
    """One broken rule. `str()` gives the message: what, where, the rule, the fix."""

    code: str
    """The rule, for programs: a key of `problem_texts.TEXTS`, which is stable when the text changes."""
    option: str | None = None
    """Name of the option that breaks it, as in its options class; None: no single option."""
    value: Any = None
    """Value of the option; text if it could not be parsed."""
    rule: Mapping[str, Any] = field(default_factory=dict)
    """The values that the rule's text shows: plain values, and lists of them."""
    remedies: tuple[Mapping[str, Any], ...] = ()
    """Fixes, the best first: options and their values. A value of None means to leave the option out."""

    def __str__(self) -> str:
        subject = written(self)
        return one_clear_line(f"{subject}: {self.explanation}" if subject else self.explanation)

    @property
    def shown(self) -> str:
        """The message in the user's language, for people; `str()` is for records, logs and JSON."""
        if language() == ENGLISH:
            return str(self)
        subject, text = written(self), self._explained(tr)
        return one_clear_line(f"{subject}{tr(': ')}{text}" if subject else text)

    @property
    def explanation(self) -> str:
        """The message without the option: the rule and the fix."""
        return self._explained(_english)

    @property
    def shown_explanation(self) -> str:
        """The rule and the fix in the user's language."""
        return self._explained(_english if language() == ENGLISH else tr)

    @property
    def broken_rule(self) -> str:
        """The rule alone."""
        return self._rule_in(_english)

    @property
    def shown_rule(self) -> str:
        """The rule alone in the user's language."""
        return self._rule_in(_english if language() == ENGLISH else tr)

    def _rule_in(self, say: Say) -> str:
        rule = TEXTS[self.code][0]
        return (rule if say is _english else keyed(f"{self.code}.rule", rule)).format_map(self._texts(say))

    def _explained(self, say: Say) -> str:
        """The rule and the fix, `say` giving each text of its own."""
        advice = TEXTS[self.code][1]
        phrases = [] if self.code in WITH_REMEDIES else _remedy_phrases(self, say)
        advice = (advice if say is _english else keyed(f"{self.code}.advice", advice)).format_map(self._texts(say))
        fixes = say(", or ").join(filter(None, [advice, *phrases]))
        return self._rule_in(say) + (f"{say('; ')}{fixes}" if fixes else "")

    def _texts(self, say: Say) -> dict[str, Any]:
        texts = {name: ", ".join(map(_text, v)) if isinstance(v, list | tuple) else v for name, v in self.rule.items()}
        if say is _english:
            return texts
        if self.code == "request":
            return {**texts, "text": phrase(texts["text"])}
        return {name: _in_words(value) if name in VALUES_IN_WORDS else value for name, value in texts.items()}

    def as_json(self) -> dict[str, Any]:
        """The problem with its text, for `--json`."""
        return {
            "code": self.code, "option": self.option, "value": self.value, "rule": dict(self.rule),
            "remedies": [dict(remedy) for remedy in self.remedies], "text": str(self),
        }  # fmt: skip


def flag_of(name: str) -> str:
    """`global_batch_size` -> `--global-batch-size`, `from_` -> `--from`."""
    return "--" + name.rstrip("_").replace("_", "-")


def written(problem: Problem) -> str:
    """The option and its value as on a command line: `--tp 3`, `--packing`; empty for a problem without an option."""
    if "written" in problem.rule:
        # positional arguments have no flag, and the values of a recipe have numbers
        return str(problem.rule["written"])
    if problem.option is None:
        return ""
    flag = flag_of(problem.option)
    return flag if problem.value in (None, "") or problem.value is True else f"{flag} {_text(problem.value)}"


def unique(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """The problems in their order, without duplicates."""
    return tuple({(p.code, p.option, str(p)): p for p in problems}.values())


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _english(text: str) -> str:
    return text


def _in_words(value: str) -> str:
    """A value of a rule, where it is words of ours: `a whole number`, an option's help, an advice."""
    if isinstance(value, Filled):
        return phrase(value)
    blanks, text = value[: len(value) - len(value.lstrip())], value.strip()
    said = phrase(text)
    return blanks + (said if said != text else phrase(text[:1].upper() + text[1:]) if len(text) > 1 else text)


def _remedy_phrases(problem: Problem, say: Say = _english) -> list[str]:
    """A phrase for each remedy; several values of the option itself share one phrase."""
    option = problem.option or ""
    values = [r[option] for r in problem.remedies if list(r) == [option] and r[option] is not None and r[option] is not True]
    if all(isinstance(v, int | float) for v in values):
        values.sort()
    phrases: list[str] = []
    for remedy in problem.remedies:
        if list(remedy) != [option] or remedy[option] is None or remedy[option] is True:
            phrases.append(_phrase(None if phrases or TEXTS[problem.code][1] else problem.option, remedy, say))
        elif values:
            phrases.append(say("use ") + (f"{flag_of(option)} " if phrases else "") + say(" or ").join(map(_text, values)))
            values = []
    return phrases


def _phrase(option: str | None, remedy: Mapping[str, Any], say: Say) -> str:
    """The phrase of one remedy. option: the option that is called `it`."""
    phrases, verb = [], ""
    for name, value in remedy.items():
        flag = flag_of(name)
        if value is None:
            phrases.append(say("leave it out") if name == option else say("leave {flag} out").format(flag=flag))
            verb = ""
        else:
            needed = say("add ") if value is True else say("use ")
            phrases.append(("" if verb == needed else needed) + (flag if value is True else f"{flag} {_text(value)}"))
            verb = needed
    return say(" and ").join(phrases)
