"""What is counted about captions."""

from __future__ import annotations

import pytest

from qwen3vl_core.caption.scores import repetition, score


def test_words_lengths_and_differences_are_counted():
    scores = score(["one two three four", "one two", ""], ["one", "one two", "a b c"])
    assert (scores.base.words, scores.base.fewest_words, scores.base.most_words, scores.base.empty) == (2.0, 0, 4, 1)
    assert scores.tuned.words == 2.0
    assert scores.tuned.empty == 0
    assert scores.differ == pytest.approx(2 / 3)


def test_repetition_is_the_share_of_passages_that_came_before():
    assert repetition("every word here stands only once") == 0
    assert repetition("") == repetition("one two") == 0
    # 20 words hold 17 passages of four, of which 4 are different
    assert repetition("a red dog runs " * 5) == pytest.approx(1 - 4 / 17)
    assert repetition("The dog runs far. the DOG runs far!") == pytest.approx(1 - 4 / 5)


def test_as_many_captions_of_each_model_are_asked_for():
    with pytest.raises(ValueError, match="2 and 1 captions"):
        score(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="at least one"):
        score([], [])
