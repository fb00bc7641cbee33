"""Readers of growing files: for any chunks nothing is lost, repeated or unsafe for the terminal."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from console.runs.series import MetricSeries, room_for
from console.runs.tail import FileFollower, JsonlTail, LogTail, clean, last_rows, sampled_rows


def rows_of(data: bytes) -> list[dict]:
    """The rows of a file's complete lines, read at once."""
    found = []
    for line in data.split(b"\n")[:-1]:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 90)),
        st.tuples(st.just("read"), st.sampled_from([None, 1, 7, 50])),
        st.tuples(st.just("truncate"), st.integers(0, 300)),
        st.tuples(st.just("replace"), st.integers(0, 300)),
        st.tuples(st.just("remove"), st.just(0)),
    ),
    max_size=40,
)


def source():
    """Endless JSON lines, some of them invalid; no two parts are equal."""
    number = 0
    while True:
        number += 1
        line = json.dumps({"n": number}) if number % 5 else [f"not json {number}", f"[{number}]", ""][number // 5 % 3]
        yield from (bytes([b]) for b in (line + "\n").encode())


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_each_row_is_read_once_despite_chunks_truncations_and_replacements(steps):
    with tempfile.TemporaryDirectory() as folder:
        path, other = Path(folder) / "m.jsonl", Path(folder) / "other"
        tail, stream = JsonlTail(path), source()
        # the current file, and the rows that the tail returned since the file was last replaced
        now, given_rows = b"", []
        for what, amount in steps:
            if what == "append":
                piece = b"".join(next(stream) for _ in range(amount))
                with open(path, "ab") as file:
                    file.write(piece)
                now += piece
            elif what == "truncate" and path.exists():
                os.truncate(path, min(amount, len(now)))
                now = now[:amount]
            elif what == "replace":
                now = b"".join(next(stream) for _ in range(amount))
                other.write_bytes(now)
                os.replace(other, path)
            elif what == "remove":
                path.unlink(missing_ok=True)
                now = b""
            elif what == "read":
                rows = tail.read(amount)
                if tail.replaced:
                    given_rows = []
                given_rows += rows
                if amount is None:
                    assert given_rows == rows_of(now)
                else:
                    assert given_rows == rows_of(now)[: len(given_rows)]
        rows = tail.read()
        assert ([] if tail.replaced else given_rows) + rows == rows_of(now)


def test_a_partial_last_row_is_read_once_complete(tmp_path):
    path = tmp_path / "m.jsonl"
    tail = JsonlTail(path)
    assert tail.read() == []
    path.write_bytes(b'{"a": 1}\n{"a"')
    assert tail.read() == [{"a": 1}] and tail.read() == []
    with open(path, "ab") as file:
        file.write(b": 2}\n")
    assert tail.read() == [{"a": 2}] and not tail.replaced


def test_a_file_rewritten_longer_in_place_is_detected(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"a": 1}\n')
    tail = JsonlTail(path)
    assert tail.read() == [{"a": 1}]
    with open(path, "r+b") as file:  # the same inode, never seen shorter
        file.write(b'{"b": 1}\n{"b": 2}\n')
    assert tail.read() == [{"b": 1}, {"b": 2}] and tail.replaced


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"a": 1' + b"0" * 5000 + b"}",
        b"\xff\xfe",
        b"null",
        b'{"a": NaN, "step": true}',
        b'{"kind": "train", "step": 1, "lr": 1' + b"0" * 400 + b"}",
    ],
)
def test_no_line_crashes_the_reader(tmp_path, line):
    path = tmp_path / "m.jsonl"
    path.write_bytes(line + b'\n{"kind": "train", "step": 1, "loss": 2.5}\n')
    series = MetricSeries(path)
    series.update()
    assert series.xy("loss")[1].tolist() == [2.5]
    assert last_rows(path)[-1]["loss"] == 2.5


def test_the_last_rows_are_read_from_the_end_only(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"step": n}) + "\n" for n in range(20_000)) + '{"step": ')
    rows = last_rows(path, 1000)
    assert rows[-1] == {"step": 19_999} and 50 < len(rows) < 100
    assert last_rows(tmp_path / "none") == []


@pytest.mark.parametrize("count", [0, 1, 30, 1700, 1725, 1750, 2000, 40_000])
def test_sampled_rows_are_unique_and_in_order_from_first_to_last(tmp_path, count):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"kind": "train", "step": n, "loss": 1.5}) + "\n" for n in range(10_000, 10_000 + count)))
    steps = [row["step"] for row in sampled_rows(path, 20)]
    assert steps == sorted(set(steps)) and len(steps) <= 1800
    assert steps[:1] + steps[-1:] == ([10_000, 10_000 + count - 1] if count else [])
    assert len(steps) == count if path.stat().st_size <= 20 * 4096 else len(steps) > 1000


def write(path, *rows):
    with open(path, "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def train(step, loss, **more):
    return {"v": 1, "kind": "train", "step": step, "time": 1.0, "loss": loss, **more}


def test_metrics_become_arrays_with_gaps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    series = MetricSeries(path)
    assert series.update() == 0 and series.keys == [] and len(series.xy("loss")[0]) == 0
    write(path, {"v": 1, "kind": "event", "event": "start", "step": 0, "train_iters": 40})
    write(path, train(1, 3.0, lr=1e-5, note="text"), train(2, None, lr=2e-5), {"v": 1, "kind": "eval", "step": 2, "loss": 2.5})
    assert series.update() == 4
    steps, loss = series.xy("loss")
    assert steps.dtype == np.int64 and steps.tolist() == [1, 2]
    assert loss[0] == 3.0 and np.isnan(loss[1])
    assert series.xy("eval/loss")[1].tolist() == [2.5]
    assert series.keys == ["loss", "lr", "eval/loss"]
    assert series.train_iters == 40 and series.events[0]["event"] == "start"
    assert series.latest["train"]["step"] == 2 and series.version == 0
    with pytest.raises(ValueError, match="read-only"):
        loss[0] = 1


def test_a_resumed_run_replaces_the_steps_that_it_repeats(tmp_path):
    path = tmp_path / "metrics.jsonl"
    series = MetricSeries(path)
    write(path, *(train(n, float(n)) for n in range(1, 1001)))
    series.update()
    before = series.xy("loss")
    write(path, *(train(n, -float(n)) for n in range(601, 701)))
    series.update()
    steps, loss = series.xy("loss")
    assert steps.tolist() == list(range(1, 701)) and series.version == 1
    assert loss[599] == 600 and (loss[600:] == -steps[600:]).all()
    assert len(before[0]) == 1000 and before[1][-1] == 1000.0  # arrays that a reader holds do not change


ROWS = st.lists(  # (step, kind, names of its numbers)
    st.tuples(st.integers(0, 30), st.sampled_from(["train", "eval"]), st.sets(st.sampled_from(["loss", "lr", "mfu", "eval/loss"]))),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, cuts=st.lists(st.integers(1, 80), max_size=6), room=st.sampled_from([0, 300, 310, 1000]))
def test_series_have_the_last_value_of_each_step_whichever_metrics_a_row_has(tmp_path_factory, rows, cuts, room):
    path = tmp_path_factory.mktemp("series") / "metrics.jsonl"
    series, expected, held = MetricSeries(path, room), {}, []
    owner: dict[str, str] = {}
    for place, (step, kind, names) in enumerate(rows):
        write(path, {"kind": kind, "step": step, **{name: place for name in names}})
        for key, points in expected.items():
            if owner[key] == kind and names:
                expected[key] = [point for point in points if point[0] < step]
        for name in names:
            key = name if kind == "train" else f"eval/{name}"
            if owner.setdefault(key, kind) == kind:
                expected.setdefault(key, []).append((step, place))
        if place in cuts:
            series.update()
            held += [(view, [array.copy() for array in view]) for view in map(series.xy, series.keys)]
    series.update()
    for key, points in expected.items():
        x, y = series.xy(key)
        assert list(zip(x.tolist(), y.tolist(), strict=True)) == points, key
    for view, copies in held:
        assert all((array == copy).all() for array, copy in zip(view, copies, strict=True)), "what a reader holds stays"


def test_a_row_takes_eight_bytes_per_value_and_its_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, *(train(n, 1.0, lr=1e-5, grad_norm=0.5) for n in range(1, 20_001)))
    series = MetricSeries(path)
    series.update()
    arrays = [array for key in series.keys for array in series.xy(key)]
    assert len({id(array.base) for array in arrays}) == 4, "three columns over the steps of one"
    assert sum({id(a.base): a.base.nbytes for a in arrays}.values()) < 20_000 * 8 * 4 * 1.3


def test_following_allocates_nothing_within_the_planned_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    series = MetricSeries(path, room_for(4000))
    write(path, train(1, 1.0, lr=1e-5), {"v": 1, "kind": "eval", "step": 1, "loss": 2.5})
    series.update()
    first = {key: [array.base for array in series.xy(key)] for key in series.keys}
    assert {key: len(y) for key, (_, y) in first.items()} == {"loss": 4000, "lr": 4000, "eval/loss": 256}
    write(path, *(train(n, float(n), lr=1e-5) for n in range(2, 4001)))
    series.update()
    assert all(array.base is base for key, bases in first.items() for array, base in zip(series.xy(key), bases, strict=True))
    write(path, *(train(n, -float(n), lr=1e-5) for n in range(3001, 4003)))  # resumed, and longer than planned
    series.update()
    steps, loss = series.xy("loss")
    assert steps.tolist() == list(range(1, 4003)) and loss[2999] == 3000 and loss[-1] == -4002 and 4002 <= len(loss.base) < 6000


@pytest.mark.parametrize(("steps", "room"), [(500, 500), (10**9, 1 << 16), (-3, 0), (None, 0), (True, 0), ("many", 0), (2.5, 0)])
def test_memory_for_the_planned_steps_is_preallocated_up_to_a_limit(steps, room):
    assert room_for(steps) == room


def test_very_many_metrics_are_not_preallocated(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, train(1, 1.0, **{f"expert_{n}": 0.5 for n in range(500)}))
    series = MetricSeries(path, room_for(10**6))
    series.update()
    assert len(series.keys) == 501
    assert sum(series.xy(key)[1].base.nbytes for key in series.keys) < 20 << 20


def test_a_replaced_metrics_file_clears_the_arrays(tmp_path):
    path = tmp_path / "metrics.jsonl"
    series = MetricSeries(path)
    write(path, *(train(n, 1.0) for n in range(300)))
    series.update()
    path.write_text("")
    write(path, train(1, 9.0))
    series.update()
    assert series.xy("loss")[1].tolist() == [9.0] and series.version == 1


def test_a_long_record_can_be_read_in_pieces(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, *(train(n, 1.0) for n in range(5000)))
    series, rounds = MetricSeries(path), 0
    while series.update(limit=50_000):
        rounds += 1
    assert rounds > 5 and len(series.xy("loss")[0]) == 5000


# the log

PIECES = st.lists(
    st.sampled_from(
        [b"\n", b"\n", b"\r", b"\r\n", b"\x1b[2K", b"\x1b[31;1m", b"\x1b]0;title\x07", b"\x1bM", b"\x1b", b"50%", b"step 7",
         "zwölf ▶".encode(), "猫".encode(), b"\xff", b"\xc2\x9b", b"\x00\x07\x08", b"\t", "\u202e".encode()]
    ),
    max_size=60,
)  # fmt: skip


def shown(data: bytes) -> tuple[list[str], str]:
    """Lines and the partial line of a log, read at once."""

    def line(raw):
        return next((text for part in reversed(raw.split(b"\r")) if (text := clean(part))), "")

    *lines, rest = data.split(b"\n")
    return [line(raw) for raw in lines], line(rest)


@settings(max_examples=150, deadline=None)
@given(pieces=PIECES, cuts=st.lists(st.integers(1, 9), max_size=60))
def test_a_log_reads_the_same_in_any_chunks_and_has_no_control_sequences(pieces, cuts):
    data = b"".join(pieces)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "output.log"
        path.touch()
        tail, lines, at = LogTail(path), [], 0
        lines += tail.read()
        for cut in [*cuts, len(data)]:
            with open(path, "ab") as file:
                file.write(data[at : at + cut])
            at += cut
            lines += tail.read()
        assert (lines, tail.partial) == shown(data)
        assert list(tail.lines) == lines[-1000:]
        text = "".join([*lines, tail.partial])
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u2028\u2029\u202e" for c in text)
        again = LogTail(path)
        assert (again.read(), again.partial) == (lines, tail.partial)


@pytest.mark.parametrize("count", [1, 5, 2000, 30_000])
def test_the_last_lines_of_a_long_log_are_read_from_its_end(tmp_path, count):
    path = tmp_path / "output.log"
    path.write_text("".join(f"line {n} {'x' * (n % 90)}\n" for n in range(30_000)) + "half")
    tail = LogTail(path, lines=count)
    found = tail.read()
    assert len(found) == count and found[-1].startswith("line 29999 ") and found[0].startswith(f"line {30_000 - count} ")
    assert tail.partial == "half"
    with open(path, "a") as file:
        file.write(" and more\n")
    assert tail.read() == ["half and more"] and len(tail.lines) == count


def test_a_progress_bar_is_its_last_state(tmp_path):
    path = tmp_path / "output.log"
    path.write_bytes(b"".join(b"\r\x1b[2Kconvert %d%%" % n for n in range(101)))
    tail = LogTail(path)
    assert tail.read() == [] and tail.partial == "convert 100%"
    with open(path, "ab") as file:
        file.write(b"\n")
    assert tail.read() == ["convert 100%"] and tail.partial == ""


def test_one_very_long_line_hides_nothing_and_takes_little_memory(tmp_path):
    path = tmp_path / "output.log"
    path.write_bytes(b"before\n" + b"y" * 3_000_000 + b"\nafter\n")
    tail = LogTail(path, lines=10, width=100)
    assert tail.read() == ["before", "y" * 99 + "…", "after"]
    with open(path, "ab") as file:
        file.write(b"z" * 20_000_000)
    tail.read()
    assert tail.partial == "z" * 99 + "…" and len(tail._segment) <= 800


def test_a_truncated_or_replaced_log_is_read_from_the_start(tmp_path):
    path, other = tmp_path / "output.log", tmp_path / "other"
    path.write_text("one\ntwo\nthr")
    tail = LogTail(path)
    tail.read()
    path.write_text("new\n")
    assert tail.read() == ["new"] and list(tail.lines) == ["new"] and tail.resets == 1
    other.write_text("newer, and longer than before\n")
    os.replace(other, path)
    assert tail.read() == ["newer, and longer than before"] and tail.resets == 2


def test_an_unchanged_file_is_not_read_again(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    follower = FileFollower(path)
    assert follower.read() == (b"abc", False)
    path.chmod(0)  # a changed mode is no change of content
    assert follower.read() == (b"", False)
