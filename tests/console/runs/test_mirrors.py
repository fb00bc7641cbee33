"""Checkpoints are copied to a mirror beside a run, a copy that is cut is never taken for whole, and a run resumes from its mirror."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from console.readers.store_watcher import StoreWatcher
from console.runs import launch, mirror, mirror_restore, run_text
from console.runs.companions import wait_for_helpers
from console.runs.state import read_json, write_json
from console.runs_command import runs as runs_command
from qwen3vl_core import file_digests
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.layout.verdict import judge
from qwen3vl_core.options import FinetuneOptions
from tests.console.runs.jobs import ROOT, job, until
from tests.console.runs.mirrored import CHECKPOINTS, checkpoint, content
from tests.console.runs.test_interrupted_runs import RECORD


def finetune(store, tmp_path, program, **options):
    made = FinetuneOptions(load="base", train_data="data", train_iters=9, mirror=str(tmp_path / "other"), **options)
    run = store.create("finetune", made, job(RECORD + CHECKPOINTS + program))
    launch.start(run)
    return run


def mirrored(run, tmp_path) -> list[int]:
    """Steps in the mirror, once all copies are made; each is what was written."""
    assert wait_for_helpers(run.path, 120)
    place = tmp_path / "other" / run.id / "checkpoints"
    for step in mirror.steps_in(place):
        digests = file_digests.read(place / mirror.folder_of(step))
        assert digests and file_digests.problem(place / mirror.folder_of(step), digests) is None
    assert not [name for name in os.listdir(place) if name.endswith(".tmp")]
    return mirror.steps_in(place)


def test_each_nth_checkpoint_and_the_last_are_copied_and_the_newest_kept(store, tmp_path):
    copied = "until_copied = lambda step: until('copied-%d' % step)\n"
    program = copied + "\n".join(
        [*(f"row({s}); save({s}); note('saved-{s}'); until('copied-{s}')" for s in range(1, 8)), "row(9); save(8); event('done', 9)"]
    )
    run = finetune(store, tmp_path, program, mirror_every=3, mirror_keep=2)
    place = tmp_path / "other" / run.id / "checkpoints"
    seen = []
    for step in range(1, 8):
        until((run.path / f"saved-{step}").exists)
        if step % 3 == 0:
            until(lambda step=step: read_json(run.path / "mirror.json").get("steps", [0])[-1] == step)
        seen.append(mirror.steps_in(place))
        (run.path / f"copied-{step}").touch()
    assert launch.wait(run, 150) == "done"
    assert mirrored(run, tmp_path) == [6, 8], "two are kept: the sixth, and the last, which is no third one"
    assert seen == [[], [], [3], [3], [3], [3, 6], [3, 6]]
    assert content(place / "iter_0000006") == content(run.path / "checkpoints" / "iter_0000006")
    assert (place / "latest_checkpointed_iteration.txt").read_text() == "8\n" and (place / "config.json").exists()
    assert read_json(place.parent / "plan.json") == run.plan
    record = read_json(run.path / "mirror.json")
    assert record["steps"] == [6, 8] and record["error"] is None and record["to"] == str(place.parent)
    assert "qwen3vl[mirror]: iter_0000008 copied to" in run.log.read_text()
    assert any(line.split()[:1] == ["mirror"] and "steps 6 8" in line for line in run_text.describe(run))


def test_a_mirror_that_cannot_be_written_is_refused_before_the_run(tmp_path):
    (tmp_path / "other").write_text("a file, no folder")
    options = FinetuneOptions(load="base", train_data="data", mirror=str(tmp_path / "other" / "copies"))
    lines = [str(problem) for problem in judge(options).problems]
    assert f"--mirror {options.mirror}: {tmp_path / 'other'} cannot be written to; choose another folder" in lines


def test_a_failing_mirror_is_told_and_the_run_goes_on(store, tmp_path):
    (tmp_path / "other").write_text("a file, no folder")
    run = finetune(store, tmp_path, "row(1); save(1); note('up'); until('go'); row(9); event('done', 9)")
    until(lambda: run.state.get("mirror"))
    assert "Not a directory" in run.state["mirror"] or "File exists" in run.state["mirror"]
    (row,) = StoreWatcher(store.root).look().rows
    assert row.error.startswith("not mirrored: ")
    (run.path / "go").touch()
    assert launch.wait(run, 150) == "done"
    assert wait_for_helpers(run.path, 120) and "qwen3vl[mirror]: not mirrored: " in run.log.read_text()
    assert any("not mirrored: " in line for line in run_text.describe(run))


def test_a_copy_killed_half_way_is_never_taken_for_whole_and_the_next_is(tmp_path):
    run_dir = tmp_path / "0001-x"
    source = checkpoint(run_dir / "checkpoints", 5, 64 << 20)
    (run_dir / "plan.json").write_text('{"created": 1.0, "host": "a", "options": {"mirror": "%s"}}' % (tmp_path / "other"))
    there = tmp_path / "other" / "0001-x" / "checkpoints"
    command = [sys.executable, "-m", "console.runs.mirror", str(run_dir)]
    kills = int(os.environ.get("QWEN3VL_KILLS", "6"))
    killed = 0
    for number in range(kills):
        child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        # in the middle of the files, at a place that differs each time
        wanted = (number + 1) * (source / "__0_0.distcp").stat().st_size // (kills + 1)
        until(lambda: child.poll() is not None or _copied(there) >= wanted)  # noqa: B023 - called at once
        child.kill()
        killed += child.wait() == -signal.SIGKILL
        assert mirror.steps_in(there) == [] or file_digests.problem(there / source.name, file_digests.read(source)) is None
        if killed == number + 1:
            assert mirror.steps_in(there) == [] and not (there / "latest_checkpointed_iteration.txt").exists()
    assert killed >= kills // 2
    assert subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL, check=False).returncode == 0
    assert mirror.steps_in(there) == [5] and content(there / source.name) == content(source)
    assert sorted(os.listdir(there)) == ["config.json", "iter_0000005", "latest_checkpointed_iteration.txt"]


def _copied(there: Path) -> int:
    return max((path.stat().st_size for path in there.glob("*.tmp/__0_0.distcp")), default=0)


def test_a_damaged_checkpoint_is_not_copied_over_a_whole_one(tmp_path):
    source = checkpoint(tmp_path / "own", 5, 9 << 20)
    target = tmp_path / "other" / source.name
    mirror.copy_checkpoint(source, target)
    before = content(target)
    data = bytearray((source / "__0_0.distcp").read_bytes())
    data[5 << 20] ^= 1
    (source / "__0_0.distcp").write_bytes(data)
    shutil.rmtree(target)
    with pytest.raises(WorkError, match=r"iter_0000005: __0_0.distcp differs from what was written, .* so it is not copied"):
        mirror.copy_checkpoint(source, target)
    assert not list((tmp_path / "other").iterdir())
    (source / "digests.json").unlink()
    with pytest.raises(WorkError, match="has no digests to compare a copy with"):
        mirror.copy_checkpoint(source, target)
    assert before


def test_a_step_that_was_trained_again_replaces_its_copy(tmp_path):
    first, again = checkpoint(tmp_path / "a", 5), checkpoint(tmp_path / "b", 5, seed=1)
    target = tmp_path / "other" / "iter_0000005"
    mirror.copy_checkpoint(first, target)
    stamp = (target / "__0_0.distcp").stat().st_ino
    mirror.copy_checkpoint(first, target)
    assert (target / "__0_0.distcp").stat().st_ino == stamp, "a whole copy is not made again"
    mirror.copy_checkpoint(again, target)
    assert content(target) == content(again) and len(list((tmp_path / "other").iterdir())) == 1


def test_two_runs_of_one_number_do_not_share_a_folder(tmp_path):
    plans = [{"created": 1.0 + number, "host": "a", "options": {"mirror": str(tmp_path / "other")}} for number in range(2)]
    places = []
    for number, plan in enumerate(plans):
        run_dir = tmp_path / f"store-{number}" / "0001-x"
        checkpoint(run_dir / "checkpoints", 1, seed=number)
        write_json(run_dir / "plan.json", plan)
        places.append(mirror.mirror(run_dir)[0])
    assert [place.name for place in places] == ["0001-x", "0001-x-2"]
    assert mirror.place_of(tmp_path / "store-0" / "0001-x", plans[0]) == places[0]


# resuming


def ended(store, tmp_path, own, copied, size=3000):
    """A failed run with these steps, and these in its mirror."""
    options = FinetuneOptions(load="base", train_data="data", train_iters=9, mirror=str(tmp_path / "other"))
    run = store.create("finetune", options, job("note('resumed'); sys.exit(3)"))
    launch.start(run)
    assert launch.wait(run, 150) == "failed"
    for step in own:
        checkpoint(run.path / "checkpoints", step, size)
    there = mirror.place_of(run.path, run.plan)
    for step in copied:
        checkpoint(there / "checkpoints", step, size)
    write_json(there / "plan.json", run.plan)
    (run.path / "resumed").unlink()
    return run


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[random.Random(1).randrange(len(data))] ^= 4
    file.write_bytes(data)


def test_resume_offers_the_mirror_when_the_own_checkpoints_are_gone(store, tmp_path, capsys):
    run = ended(store, tmp_path, [], [3, 6])
    with pytest.raises(
        RequestError, match=r"has no whole checkpoint of its own, and its mirror .* has step 6; add --from-mirror to take that$"
    ):
        runs_command(["resume", "1", "--runs", str(store.root)])
    assert not (run.path / "resumed").exists()
    assert runs_command(["resume", "1", "--from-mirror", "--runs", str(store.root)]) == 0
    assert "step 6 is back from" in capsys.readouterr().err
    own = run.path / "checkpoints"
    assert content(own / "iter_0000006") == content(tmp_path / "other" / run.id / "checkpoints" / "iter_0000006")
    assert (own / "latest_checkpointed_iteration.txt").read_text() == "6\n" and (own / "config.json").exists()
    until((run.path / "resumed").exists)


def test_resume_offers_the_mirror_when_the_newest_own_checkpoint_is_damaged(store, tmp_path):
    run = ended(store, tmp_path, [3, 6], [3, 6])
    flip(run.path / "checkpoints" / "iter_0000006" / ".metadata")
    words = ["resume", "1", "--runs", str(store.root)]
    with pytest.raises(
        RequestError, match=r"up to step 3 only, .* has step 6; add --from-mirror to take that, or --no-from-mirror to resume"
    ):
        runs_command(words)
    assert mirror_restore.restore(run) == 6
    assert mirror_restore.offered(run) is None
    own = run.path / "checkpoints" / "iter_0000006"
    assert file_digests.problem(own, file_digests.read(own)) is None


def test_one_flipped_bit_is_found_when_a_checkpoint_is_taken_from_the_mirror(store, tmp_path):
    run = ended(store, tmp_path, [6], [6], 3 << 20)
    with pytest.raises(RequestError, match="its own checkpoint of step 6 is whole, every byte; leave --from-mirror out"):
        mirror_restore.restore(run)
    flip(run.path / "checkpoints" / "iter_0000006" / "__0_0.distcp")
    flip(tmp_path / "other" / run.id / "checkpoints" / "iter_0000006" / "__0_0.distcp")
    with pytest.raises(WorkError, match="differs from what was written"):
        mirror_restore.restore(run)
    shutil.rmtree(tmp_path / "other" / run.id / "checkpoints" / "iter_0000006")
    checkpoint(tmp_path / "other" / run.id / "checkpoints", 6)
    assert mirror_restore.restore(run) == 6


def test_a_run_without_a_mirror_says_so(store):
    run = store.create("finetune", FinetuneOptions(load="base", train_data="data"), job("pass"))
    launch.start(run)
    launch.wait(run, 150)
    assert mirror_restore.offered(run) is None
    with pytest.raises(RequestError, match="has no mirror; a finetune with --mirror has one"):
        mirror_restore.restore(run)


def test_copying_takes_no_time_of_the_run(store, tmp_path):
    """A mirror whose folder cannot be locked by its copy, as another one holds it, is waited for by the copy alone."""
    import fcntl

    run = finetune(store, tmp_path, "row(1); save(1); note('up'); until('go'); row(9); event('done', 9)")
    until((run.path / "up").exists)
    lock = os.open(run.path / "checkpoints", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (run.path / "go").touch()
    began = time.monotonic()
    assert launch.wait(run, 150) == "done" and time.monotonic() - began < 60
    os.close(lock)
    assert mirrored(run, tmp_path) == [1]
