"""Captions of many prompts: the tokens of Hugging Face's `generate` for any batching, streamed in complete characters."""

from __future__ import annotations

import itertools
import time

from qwen3vl_core.model.kv_cache import CachedDecoder

import pytest
import torch

import qwen3vl_core
from qwen3vl_core.caption import generate
from qwen3vl_core.caption.generate import CaptionWriter, Prompt
from qwen3vl_core.caption.sampling import Sampling
from qwen3vl_core.data.processor import ChatProcessor
from qwen3vl_core.errors import WorkError
from tests import tiny
from tests.shared import DEMO

LENGTH = 16


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(Hugging Face model, ours loaded from the directory that Hugging Face saved)."""
    # untied: a random tied model soon repeats one token forever
    reference = tiny.hf_model(seed=11, tied=False)
    return reference, qwen3vl_core.load(tiny.save(reference, tmp_path_factory.mktemp("hf")))


def prompts() -> list[Prompt]:
    """Prompts with one picture, two, and none; some lengths are shared, some unique."""
    rows = [
        (3, ("image", 4, 6), 7), (2, ("image", 4, 6), 8), (18,), (1, ("image", 6, 6), 12), (5, ("image", 4, 4), ("image", 4, 4), 3),
        (9,), (18,), (4, ("image", 4, 6), 6), (6, ("image", 4, 6), 4), (7, ("image", 4, 4), 5),
    ]  # fmt: skip
    return [Prompt(tiny.Conversations(seed).row(*row).inputs(), seed=seed * 77) for seed, row in enumerate(rows)]


def as_numbers(ids: list[int]) -> str:
    return "".join(f"{i} " for i in ids)


def reference_tokens(reference, prompt: Prompt, ends: list[int]) -> list[int]:
    inputs = dict(prompt.inputs)
    made = reference.generate(
        **inputs, mm_token_type_ids=tiny.token_types(inputs["input_ids"]), max_new_tokens=LENGTH, do_sample=False,
        eos_token_id=ends, pad_token_id=0,
    )  # fmt: skip
    ids = made[0, prompt.length :].tolist()
    return ids[:-1] if ids and ids[-1] in ends else ids


def written(model, sampling=None, batch_size=4, ends=(), given=None, **more):
    writer = CaptionWriter(model, as_numbers, ends, sampling or Sampling(max_new_tokens=LENGTH), batch_size=batch_size, **more)
    return writer.write(given if given is not None else prompts())


def test_greedy_captions_equal_hugging_face_token_for_token(pair):
    reference, model = pair
    endless = written(model)
    # tokens that some captions reach early, some late and some never
    ends = sorted({endless[6].ids[2], endless[1].ids[3], endless[3].ids[1]})
    captions = written(model, ends=ends)
    expected = [reference_tokens(reference, prompt, ends) for prompt in prompts()]
    assert [caption.ids for caption in captions] == expected
    assert [reference_tokens(reference, prompt, []) for prompt in prompts()] == [caption.ids for caption in endless]
    assert len({len(ids) for ids in expected}) > 3 and LENGTH in map(len, expected)
    assert [caption.whole for caption in captions] == [len(ids) < LENGTH for ids in expected]


@pytest.mark.parametrize("sampling", [
    Sampling(max_new_tokens=LENGTH), Sampling(LENGTH, temperature=1.0), Sampling(LENGTH, temperature=0.8, top_p=0.9, top_k=50),
], ids=["greedy", "drawn", "drawn from the likeliest"])  # fmt: skip
def test_a_caption_does_not_depend_on_the_batch_it_is_written_in(pair, sampling):
    _, model = pair
    ends = list(range(150, 156))
    first = [caption.ids for caption in written(model, sampling, batch_size=1, ends=ends)]
    assert len({len(ids) for ids in first}) > 2 or sampling.greedy
    for batch_size in (3, 16):
        assert [caption.ids for caption in written(model, sampling, batch_size, ends=ends)] == first
    backwards = written(model, sampling, 16, ends=ends, given=prompts()[::-1])
    assert [caption.ids for caption in backwards[::-1]] == first


def test_a_seed_determines_the_sampled_captions(pair):
    _, model = pair
    sampling = Sampling(LENGTH, temperature=1.0)
    same = [Prompt(prompts()[0].inputs, seed) for seed in (1, 2, 1, 3)]
    texts = [caption.text for caption in written(model, sampling, given=same)]
    assert texts[0] == texts[2] and len(set(texts)) == 3


def test_finished_rows_leave_the_batch(pair, monkeypatch):
    _, model = pair
    sizes = []
    keep_rows = CachedDecoder.keep_rows
    monkeypatch.setattr(
        CachedDecoder, "keep_rows", lambda decoder, rows: (keep_rows(decoder, rows), sizes.append(decoder.context.max_batch_size))
    )
    ends = list(range(150, 170))
    same = [Prompt(prompts()[0].inputs, seed) for seed in range(8)]
    sampling = Sampling(60, temperature=1.0)
    captions = written(model, sampling, batch_size=8, ends=ends, given=same)
    assert sizes and sizes == sorted(sizes, reverse=True) and sizes[0] < 8
    assert len({len(caption.ids) for caption in captions}) > 3


def test_the_seconds_of_captions_add_up_to_the_time_they_took(pair):
    _, model = pair
    told: dict[int, float] = {}
    writer = CaptionWriter(
        model, as_numbers, (), Sampling(max_new_tokens=LENGTH), batch_size=4, interval=0,
        on_text=lambda index, text, done: told.update({index: writer.seconds[index]}),
    )  # fmt: skip
    begin = time.monotonic()
    captions = writer.write(prompts())
    took = time.monotonic() - begin
    seconds = [caption.seconds for caption in captions]
    assert min(seconds) > 0 and took / 2 < sum(seconds) <= took
    assert told == dict(enumerate(seconds)), "also while they are written"


def test_streamed_text_grows_and_is_marked_done_once(pair):
    _, model = pair
    told: dict[int, list[tuple[str, bool]]] = {}
    captions = written(model, interval=0, on_text=lambda index, text, done: told.setdefault(index, []).append((text, done)))
    assert sorted(told) == list(range(len(captions)))
    for index, caption in enumerate(captions):
        texts = [text for text, _ in told[index]]
        assert len(texts) == LENGTH
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
        assert texts[-1] == caption.text == as_numbers(caption.ids)
        assert [done for _, done in told[index]] == [False] * (LENGTH - 1) + [True]


def test_streamed_text_never_ends_inside_a_character(pair):
    """Each token is a piece of one of the characters' bytes, so that nearly every step ends inside one."""
    _, model = pair
    pieces = [b"\xf0\x9f", b"\x99\x82", b"\xe2\x82", b"\xac", b"a ", b"\xc3", b"\xa9"]

    def decode(ids: list[int]) -> str:
        return b"".join(pieces[i % len(pieces)] for i in ids).decode("utf-8", "replace")

    told: dict[int, list[str]] = {}
    sampling = Sampling(40, temperature=1.0)
    writer = CaptionWriter(
        model, decode, [], sampling, interval=0, on_text=lambda index, text, done: told.setdefault(index, []).append(text)
    )
    for index, caption in enumerate(writer.write(prompts())):
        assert caption.text == decode(caption.ids).rstrip("\ufffd")
        for earlier, later in itertools.pairwise(told[index]):
            assert later.startswith(earlier)
        assert not any(text.endswith("\ufffd") for text in told[index])


def test_the_tokenizers_own_bytes_stream_as_whole_characters():
    processor = ChatProcessor.from_pretrained(DEMO)
    text = "Ein Käfer 🙂 läuft über 漢字 – und «weiter»."
    ids = processor.tokenizer.encode(text)
    stream = generate._StreamedText(processor.decode)
    texts = [stream.of(ids[:end]) for end in range(1, len(ids) + 1)]
    assert texts[-1] == text
    assert len(ids) > len(text), "the demo's tokenizer has no token for these characters, only for their bytes"
    assert all(text.startswith(part) for part in texts)


def test_prompts_are_read_lazily(pair, monkeypatch):
    """A thousand large pictures are never in memory at once."""
    _, model = pair
    given = prompts()
    monkeypatch.setattr(generate, "WAITING_BYTES", 3 * max(prompt.size for prompt in given))
    taken, ended, most = [], [], 0

    def one_by_one():
        nonlocal most
        for index, prompt in enumerate(given * 3):
            taken.append(index)
            most = max(most, len(taken) - len(ended))
            yield prompt

    captions = written(model, batch_size=16, given=one_by_one(), on_text=lambda index, text, done: done and ended.append(index))
    assert len(captions) == 30 and most < 20
    assert [caption.ids for caption in captions] == 3 * [caption.ids for caption in written(model)]


def test_nan_logits_are_an_error(tmp_path):
    reference = tiny.hf_model(seed=3)
    with torch.no_grad():
        reference.model.language_model.norm.weight[5] = float("nan")
    model = qwen3vl_core.load(tiny.save(reference, tmp_path))
    with pytest.raises(WorkError, match="logits are NaN or infinite"):
        written(model)


def test_the_number_of_threads_is_restored(pair):
    _, model = pair
    before = torch.get_num_threads()
    written(model, given=prompts()[:1])
    assert torch.get_num_threads() == before
