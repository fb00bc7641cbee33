"""Scores of captions."""

from __future__ import annotations

import pytest

from qwen3vl_core.caption.comparison import tally
from qwen3vl_core.caption.reference_metrics import Cider, rouge_l
from qwen3vl_core.caption.scores import repetition, score


def test_words_lengths_and_differences_are_counted():
    scores = score({"base": ["one two three four", "one two", ""], "tuned": ["one", "one two", "a b c"]})
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


def test_every_model_needs_the_same_number_of_captions():
    with pytest.raises(ValueError, match="2 and 1 captions"):
        score({"base": ["a", "b"], "tuned": ["a"]})
    with pytest.raises(ValueError, match="at least one"):
        score({"base": [], "tuned": []})


REFERENCES = [
    ["a woman sitting on the beach with her dog", "a lady and her dog on a beach"], ["two black horses in a meadow at night"],
    ["a man in a red outfit standing by a lake", "the man stands at the water"],
]  # fmt: skip
CAPTIONS = ["a woman with a dog sitting on the beach", "two black horses standing in a meadow", "a red kite"]


def test_rouge_l_and_cider_are_those_of_the_coco_evaluation():
    """The figures are pycocoevalcap 1.2's, `Cider().compute_score` and `Rouge().compute_score`, on the same words."""
    cider = Cider(REFERENCES)
    assert [cider.score(i, text) for i, text in enumerate(CAPTIONS)] == pytest.approx([2.95909, 4.237298, 0.337569], abs=1e-6)
    found = [rouge_l(text, written) for text, written in zip(CAPTIONS, REFERENCES, strict=True)]
    assert found == pytest.approx([0.666667, 0.790497, 0.28046], abs=1e-6)


def test_a_caption_that_is_its_reference_scores_highest_whatever_its_case_and_punctuation():
    assert rouge_l("Two black horses, in a meadow: at NIGHT!", REFERENCES[1]) == pytest.approx(1)
    assert rouge_l("", REFERENCES[0]) == rouge_l("text", []) == rouge_l("text", ["..."]) == 0
    cider = Cider(REFERENCES)
    same = cider.score(1, "Two black horses in a meadow at night.")
    assert same == pytest.approx(10) and same > cider.score(1, CAPTIONS[1]) > cider.score(1, "a red kite") == 0
    assert cider.score(0, "") == 0


def test_scores_count_the_pictures_that_have_references():
    scores = score({"base": [*CAPTIONS, "anything"], "tuned": [*(r[0] for r in REFERENCES), "else"]}, [*REFERENCES, ()])
    assert scores.referenced == 3 and scores.tuned.rouge_l == pytest.approx(1) and scores.tuned.cider > scores.base.cider > 0
    assert scores.base.length_ratio == pytest.approx((9 + 7 + 3) / (7.5 + 8 + 7.5 + 0.5), abs=0.2)
    one = score({"base": ["a dog"], "tuned": ["a cat"]}, [["a dog"]])
    assert one.base.rouge_l == 1 and one.base.cider is None
    none = score({"base": ["a dog"], "tuned": ["a cat"]})
    assert none.base.rouge_l is none.base.cider is None and none.referenced == 0


def test_votes_are_tallied_by_model():
    assert tally(["tuned", "same", "tuned", "gone"], ["base", "tuned"]) == {"base": 0, "tuned": 2, "same": 1}
