"""Problems of records and samples: each has a code with a text and a reason that reports count, and every code is raised."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

import qwen3vl_core
from qwen3vl_core.data.errors import REASON_OF, REASONS, DataError, picture_errors
from qwen3vl_core.problem_texts import TEXTS

PACKAGE = Path(qwen3vl_core.__file__).parent
_QUOTED = re.compile(r'"([a-z0-9]+(?:-[a-z0-9]+)+)"')


def test_every_code_has_a_text_and_a_reason():
    assert set(REASON_OF.values()) == set(REASONS)
    assert set(REASON_OF) <= set(TEXTS)


def test_every_code_is_raised_somewhere():
    text = "".join(f.read_text() for f in PACKAGE.rglob("*.py") if f.name not in ("errors.py", "problem_texts.py"))
    text += (PACKAGE / "data/errors.py").read_text().split("class DataError")[1]
    # the kind of a file is put in front: picture-missing, video-missing
    raised = set(_QUOTED.findall(text)) | {
        f"{kind}-{rest}" for rest in re.findall(r'f"{kind}-([a-z-]+)"', text) for kind in ("picture", "video")
    }
    assert set(REASON_OF) <= raised, set(REASON_OF) - raised


def test_an_error_is_the_same_behind_a_process():
    error = DataError("video-header", "a.mp4", frames=3, width=4, height=5, fps=2.5)
    again = pickle.loads(pickle.dumps(error))
    assert again.problem == error.problem and again.reason == "broken_video"
    assert str(again) == "broken_video: a.mp4: 3 frames of 4x5 at 2.5 a second"


def test_the_file_is_named_once_by_the_innermost_that_knows_it():
    with pytest.raises(DataError, match=r"^extreme_picture: a\.jpg: 900x1: one side"), picture_errors("b.tar"), picture_errors("a.jpg"):
        raise DataError("picture-proportions", width=900, height=1, ratio=200)
