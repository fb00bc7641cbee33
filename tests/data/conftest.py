"""What the data tests share: the demo checkpoint's processors, and one prepared dataset."""

from __future__ import annotations

import pytest

from tests.data import samples


@pytest.fixture(scope="package")
def processor():
    from qwen3vl_core.data.processor import ChatProcessor

    return ChatProcessor.from_pretrained(samples.CHECKPOINT)


@pytest.fixture(scope="package")
def pillow(processor):
    """The same with Pillow's resizing."""
    import copy
    import dataclasses

    made = copy.copy(processor)
    made.rules = dataclasses.replace(processor.rules, pillow=True)
    return made


@pytest.fixture(scope="package")
def hugging_face():
    return samples.hugging_face_processor()


@pytest.fixture(scope="package")
def dataset(tmp_path_factory):
    """23 training samples, 3 of validation, none of test; two pictures in some, none in others."""
    folder = tmp_path_factory.mktemp("prepared")
    two = samples.record(90, ["pictures/0.jpg", "pictures/3.png"])
    return samples.dataset(folder, 20, "7,1,0", extra=[two] * 4)
