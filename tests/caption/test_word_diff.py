"""Word differences: nothing is lost, equal words are found, in texts of every script."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3vl_core.caption.word_diff import count, difference, mark_differences, split

PIECES = st.sampled_from(["a", "dog", " ", "  ", "\n", ".", "the", "’s", "漢", "-"])
TEXTS = st.text(max_size=60) | st.lists(PIECES, max_size=40).map("".join)


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_a_difference_reproduces_both_texts(a, b):
    runs = difference(a, b)
    assert "".join(first for _, first, _ in runs) == a
    assert "".join(second for _, _, second in runs) == b
    for kind, first, second in runs:
        expected = "same" if first.casefold() == second.casefold() else "changed" if first and second else "removed" if first else "added"
        assert kind == expected and (first or second)


@settings(deadline=None)
@given(TEXTS)
def test_equal_texts_have_no_difference(text):
    assert difference(text, text) == ([("same", text, text)] if text else [])
    assert "".join(word.space + word.core for word in split(text)) == text


def test_each_kind_of_difference_is_found():
    assert difference("a brown dog sits", "a white dog sits down") == [
        ("same", "a", "a"),
        ("changed", " brown", " white"),
        ("same", " dog sits", " dog sits"),
        ("added", "", " down"),
    ]
    assert difference("one two three", "three") == [("removed", "one two ", ""), ("same", "three", "three")]
    assert difference("", "new words") == [("added", "", "new words")]


def test_punctuation_that_two_rewritten_passages_share_is_part_of_the_change():
    assert difference("red, green. End", "blue, black. End") == [("changed", "red, green", "blue, black"), ("same", ". End", ". End")]


def test_white_space_alone_counts_as_a_difference():
    assert difference("a\n\ndog", "a dog") == [("same", "a", "a"), ("changed", "\n\n", " "), ("same", "dog", "dog")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        (" \n ", 0),
        ("- **Main Subjects**: a woman.", 4),
        ("the dog’s well-lit coat, 3.5 m", 7),
        ("一只狗在海滩上", 7),
        ("हिन्दी में", 2),
        ("--- ... !", 0),
    ],
)
def test_words_are_counted_and_punctuation_is_not(text, words):
    assert count(text) == words


def test_endless_repetitions_are_compared_in_seconds():
    started = time.monotonic()
    a, b = "very " * 12_000 + "end", "so " + "very " * 9_000 + "much"
    runs = difference(a, b)
    assert "".join(first for _, first, _ in runs) == a
    assert time.monotonic() - started < 20


def test_case_is_ignored_but_kept_in_the_texts():
    assert difference("The red ball", "the Red cube") == [("same", "The red", "the Red"), ("changed", " ball", " cube")]


def test_two_captions_mark_their_differences_and_more_mark_words_not_in_the_first():
    assert mark_differences(["The red ball.", "the blue ball."]) == [
        [("The", ""), (" ", ""), ("red", "first"), (" ball.", "")], [("the", ""), (" ", ""), ("blue", "other"), (" ball.", "")],
    ]  # fmt: skip
    assert mark_differences(["a cat", "a dog", "a big cat"]) == [
        [("a cat", "")], [("a", ""), (" ", ""), ("dog", "other")], [("a", ""), (" ", ""), ("big", "other"), (" cat", "")],
    ]  # fmt: skip
    assert mark_differences(["", "a dog"]) == [[("", "")], [("a dog", "")]] and mark_differences([]) == []


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=3))
def test_marking_keeps_the_text_and_marks_have_no_outer_white_space(texts):
    for text, runs in zip(texts, mark_differences(texts), strict=True):
        assert "".join(part for part, _ in runs) == text
        assert all(part == part.strip() for part, mark in runs if mark)
