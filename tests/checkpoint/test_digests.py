"""Any damage to a run's checkpoint is detected before it is trained on, and the previous checkpoint is used."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qwen3vl_core import file_digests
from qwen3vl_core.checkpoint import retention, torch_dist
from qwen3vl_core.cli import main
from qwen3vl_core.digested_file import DigestedFile, WrittenDigests
from qwen3vl_core.errors import RequestError
from tests.ranks import run_ranks
from tests.training import runs

# the long form: QWEN3VL_DAMAGE=200 pytest tests/checkpoint/test_digests.py
DAMAGES = int(os.environ.get("QWEN3VL_DAMAGE", 12))
OLD, NEW = "iter_0000002", "iter_0000004"


def model_and_digests(folder: Path) -> tuple[Path, bool]:
    """A small model, and whether Megatron-Core's writers make the digests of their files meanwhile."""
    from qwen3vl_core.model.patches.write_results import patch_next_save

    import torch
    from megatron.core import dist_checkpointing

    digests = patch_next_save()
    (folder / "saved").mkdir()
    state = {"x": dist_checkpointing.ShardedTensor.from_rank_offsets("x", torch.randn(3 << 20)), "y": torch.ones(3)}
    dist_checkpointing.save(state, str(folder / "saved"))
    found, _ = digests.read(folder / "saved")
    written = file_digests.of_files(folder / "saved", [file.name for file in (folder / "saved").glob("*.distcp")])
    return runs.small_model(folder), bool(found) and found == written


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run of four steps with two checkpoints."""
    run = tmp_path_factory.mktemp("trained")
    small, meanwhile = run_ranks(1, model_and_digests, tmp_path_factory.mktemp("small"))[0]
    assert meanwhile
    runs.plan(run, data, load=str(small), train_iters=4, save_interval=2)
    assert runs.train(run)[0] == 0, runs.log(run)
    return run


def copy_of(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to


def large(folder: Path) -> Path:
    return max(folder.glob("*.distcp"), key=lambda file: file.stat().st_size)


def change(file: Path, at: int, data: bytes) -> None:
    with open(file, "r+b") as stream:
        stream.seek(at)
        stream.write(data)


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def sign_of_second_moment(data: Path) -> None:
    """Flip the sign bit of one value of Adam's second moment."""
    reader = torch_dist.RegionReader(data)
    key = max((k for k in reader.tensors if "exp_avg_sq" in k), key=lambda k: math.prod(reader.tensors[k].size))
    chunk = reader._chunks[key].all[0]
    flip(reader.file_of(chunk.stored), 8 * (chunk.stored.offset + reader._location(chunk.stored).offset + 3) + 7)


def common_values(data: Path) -> Path:
    """The file that says what the common values are: from Megatron-Core 0.19 on they are among the shards."""
    return data / ("common.pt" if (data / "common.pt").exists() else ".metadata")


KINDS = {
    "a sign bit of the second moment": sign_of_second_moment,
    "zeros": lambda data: change(large(data), large(data).stat().st_size // 2, bytes(64 << 10)),
    "cut short": lambda data: os.truncate(large(data), large(data).stat().st_size - 1),
    "longer": lambda data: large(data).open("ab").write(b"x"),
    "a shard is missing": lambda data: large(data).unlink(),
    "common values are empty": lambda data: common_values(data).write_bytes(b""),
    "common values are cut": lambda data: os.truncate(common_values(data), 300),
    "extra.json is {}": lambda data: (data / "extra.json").write_text("{}"),
    "extra.json is no table": lambda data: (data / "extra.json").write_text("[[" * 50_000),
    "metadata.json": lambda data: flip(data / "metadata.json", 11),
    "a bit of .metadata": lambda data: flip(data / ".metadata", 4001),
    "no digests": lambda data: (data / "digests.json").unlink(),
    "a bit of the digests": lambda data: flip(data / "digests.json", 401),
}


def without_digests(data: Path) -> None:
    """As written by an older version."""
    (data / "digests.json").unlink()
    extra = json.loads((data / "extra.json").read_text())
    extra.pop("digests")
    (data / "extra.json").write_text(json.dumps(extra))


def stated_size(data: Path) -> None:
    """`.metadata` claims a tensor of 2**40 elements."""
    import pickle

    with open(data / ".metadata", "rb") as file:
        table = pickle.load(file)
    key = next(k for k, v in table.state_dict_metadata.items() if hasattr(v, "chunks"))
    import torch

    table.state_dict_metadata[key].size = torch.Size([1 << 40])
    with open(data / ".metadata", "wb") as file:
        pickle.dump(table, file)


def test_every_file_has_a_digest_and_an_intact_checkpoint_passes(trained):
    data = trained / "checkpoints" / NEW
    digests = file_digests.read(data)
    assert set(digests) == {file.name for file in data.iterdir()} - {file_digests.NAME}
    for event in runs.events(trained, "save"):
        assert 0 <= event["digest_seconds"] <= event["seconds"]
    assert file_digests.problem(data, digests) is None and retention.damage(data, ("data",)) is None


@pytest.mark.parametrize("size", [0, 1, file_digests.CHUNK - 1, file_digests.CHUNK, 3 * file_digests.CHUNK + 7])
def test_digests_that_are_made_while_a_file_is_written_are_those_of_the_file(tmp_path, size):
    digests, content = WrittenDigests(), random.Random(size).randbytes(size)
    with DigestedFile(tmp_path / "small", digests) as file:
        for at in range(0, size, 1 << 20 | 3):
            file.write(memoryview(content)[at : at + (1 << 20 | 3)])
    with DigestedFile(tmp_path / "whole", digests) as file:
        file.write(content)
        os.fsync(file.fileno())
    with DigestedFile(tmp_path / "back", digests) as file:
        file.write(content)
        file.seek(0)
        file.write(b"x")
    found, waited = digests.read(tmp_path)
    assert found == file_digests.of_files(tmp_path, ["small", "whole"]) and waited >= 0
    os.truncate(tmp_path / "whole", size + 1)
    assert set(digests.read(tmp_path)[0]) == {"small"}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_damage_is_detected(trained, tmp_path, kind):
    data = copy_of(trained / "checkpoints" / NEW, tmp_path / NEW)
    KINDS[kind](data)
    assert retention.damage(data, ("data",)) or file_digests.problem(data, file_digests.read(data))


@pytest.mark.parametrize(
    "kind", ["common values are empty", "common values are cut", "extra.json is {}", "extra.json is no table", "cut short"]
)
def test_damage_without_digests_is_a_one_line_error(trained, tmp_path, kind):
    data = copy_of(trained / "checkpoints" / NEW, tmp_path / NEW)
    without_digests(data)
    assert retention.damage(data, ("data",)) is None
    KINDS[kind](data)
    problem = retention.damage(data, ("data",))
    assert problem and "\n" not in problem


@pytest.mark.parametrize("seed", range(DAMAGES))
def test_random_damage_is_detected(trained, tmp_path, seed):
    chance = random.Random(seed)
    data = copy_of(trained / "checkpoints" / NEW, tmp_path / NEW)
    file = chance.choice(sorted(data.iterdir()))
    flip(file, chance.randrange(8 * file.stat().st_size))
    try:
        problem = retention.damage(data, ("data",)) or file_digests.problem(data, file_digests.read(data) or {})
    except (ValueError, RequestError) as error:
        problem = str(error)
    assert problem and "\n" not in problem, file.name


@pytest.mark.parametrize("world", [1, 2])
def test_a_resume_skips_a_checkpoint_with_a_flipped_bit_and_reports_it(trained, data, tmp_path, world):
    run = copy_of(trained, tmp_path / "run")
    before = runs.losses(run)
    sign_of_second_moment(run / "checkpoints" / NEW)
    if world > 1:
        options = json.loads((run / "plan.json").read_text())
        options["options"] |= {"nproc": world}
        (run / "plan.json").write_text(json.dumps(options))
    assert runs.train(run, world=world)[0] == 0, runs.log(run)
    said = runs.events(run, "damaged")[0]["text"]
    assert f"{NEW} is damaged" in said and "differs from what was written, between bytes" in said and "the one before it" in said
    assert runs.events(run, "resume")[0]["step"] == 2
    if world == 1:
        assert runs.losses(run) == before + before[2:], "bitwise"


def test_no_step_is_trained_if_every_checkpoint_is_damaged(trained, tmp_path):
    run = copy_of(trained, tmp_path / "run")
    before = runs.losses(run)
    for name in (OLD, NEW):
        sign_of_second_moment(run / "checkpoints" / name)
    assert runs.train(run)[0] == 2
    assert "no checkpoint is complete" in runs.log(run) and "Traceback" not in runs.log(run)
    assert runs.losses(run) == before


def test_convert_and_inspect_detect_damage_in_the_bytes_that_they_read(trained, tmp_path, capsys):
    run = copy_of(trained, tmp_path / "run")
    data = run / "checkpoints" / NEW
    reader = torch_dist.RegionReader(data)
    key = max((k for k in reader.tensors if not k.startswith("optimizer")), key=lambda k: math.prod(reader.tensors[k].size))
    chunk = reader._chunks[key].all[0]
    flip(reader.file_of(chunk.stored), 8 * (chunk.stored.offset + reader._location(chunk.stored).offset + 3) + 6)
    assert main(["convert", str(run / "checkpoints"), str(tmp_path / "hf")]) == 2
    assert "differs from what was written" in capsys.readouterr().err and not (tmp_path / "hf").exists()
    os.truncate(large(data), large(data).stat().st_size - 1)
    main(["inspect", str(run / "checkpoints")])
    assert "were written" in capsys.readouterr().out


def test_metadata_with_too_large_sizes_is_a_one_line_error(trained, tmp_path, capsys):
    run = copy_of(trained, tmp_path / "run")
    for name in (OLD, NEW):
        stated_size(run / "checkpoints" / name)
        without_digests(run / "checkpoints" / name)
    assert main(["convert", str(run / "checkpoints"), str(tmp_path / "hf")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "Traceback" not in err


def test_the_last_checkpoint_with_good_losses_is_kept(trained, tmp_path):
    directory = copy_of(trained / "checkpoints", tmp_path / "checkpoints")
    for step in (6, 8, 10):
        shutil.copytree(directory / NEW, directory / f"iter_{step:07d}")
    for step in (6, 8, 10):
        file = directory / f"iter_{step:07d}" / "extra.json"
        extra = json.loads(file.read_text())
        extra["guard"]["content"] = False
        file.write_text(json.dumps(extra))
    assert retention.prune(directory, 10, last=2, every=0) == [2, 6]
    assert retention.iterations(directory) == [4, 8, 10]


def test_runs_check_names_the_damaged_checkpoint(trained, tmp_path, capsys):
    from console import commands

    run = copy_of(trained, tmp_path / "runs" / "0001-finetune")
    words = ["check", "1", "--runs", str(tmp_path / "runs")]
    assert commands.runs(words) == 0 and capsys.readouterr().out.count("complete; --read-data") == 2
    assert commands.runs([*words, "--read-data"]) == 0 and capsys.readouterr().out.count("as it was written") == 2
    sign_of_second_moment(run / "checkpoints" / NEW)
    without_digests(run / "checkpoints" / OLD)
    assert commands.runs(words) == 0  # its length is right, and its bytes were not read
    capsys.readouterr()
    assert commands.runs([*words, "--read-data"]) == 1
    out, err = capsys.readouterr()
    assert f"{OLD}  –  has no digests" in out and f"{NEW}  " in out and "DAMAGED: __0_" in out and "passes over the damaged" in err
    assert commands.runs([*words, "--read-data", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [row["step"] for row in rows] == [2, 4] and rows[0]["unknown"] and "differs" in rows[1]["problem"]


def test_replaced_and_unreadable_files_are_named(tmp_path):
    (tmp_path / "a.distcp").write_bytes(os.urandom(file_digests.CHUNK + 5))
    digests = file_digests.of_files(tmp_path, ["a.distcp"])
    (tmp_path / file_digests.NAME).write_text(file_digests.written(digests))
    assert file_digests.read(tmp_path) == digests and len(digests["a.distcp"][1]) == 2
    seen = []
    assert file_digests.problem(tmp_path, digests, told=seen.append) is None and sum(seen) == file_digests.CHUNK + 5
    flip(tmp_path / "a.distcp", 8 * file_digests.CHUNK)
    shares = [file_digests.problem(tmp_path, digests, share=(i, 2)) for i in (0, 1)]
    assert shares[0] is None and f"between bytes {file_digests.CHUNK} and {file_digests.CHUNK + 5}" in shares[1]
    (tmp_path / "a.distcp").unlink()
    assert "a.distcp: No such file" in file_digests.problem(tmp_path, digests)


@pytest.mark.parametrize("seed", range(4))
def test_damage_to_bytes_that_are_read_in_any_order_is_found_by_their_own_digests(tmp_path, seed):
    """Pieces of any length, some read twice and some not at all, as a conversion reads them from several threads."""
    chance, file = random.Random(seed), tmp_path / "a.distcp"
    size = 2 * file_digests.CHUNK + chance.randrange(file_digests.CHUNK)
    file.write_bytes(chance.randbytes(size))
    digests = file_digests.of_files(tmp_path, [file.name])
    ends = sorted(chance.sample(range(size), 20))
    pieces = list(itertools.pairwise([0, *ends, size]))[chance.randrange(3) :]
    pieces += [(begin, begin + 500) for begin in chance.sample(range(size - 500), 50)]
    chance.shuffle(pieces)
    pieces += pieces[:2]

    def read() -> None:
        checker, content = file_digests.DigestChecker(digests), memoryview(file.read_bytes())

        def passed(piece: tuple[int, int]) -> None:
            if (problem := checker.problem(file, piece[0], content[slice(*piece)])) is not None:
                raise ValueError(problem)

        with checker.in_passing(tmp_path, lambda file, problem: ValueError(problem)), ThreadPoolExecutor(4) as pool:
            list(pool.map(passed, pieces))

    read()
    begin, end = chance.choice([piece for piece in pieces if piece[1] - piece[0] > 1])
    flip(file, 8 * chance.randrange(begin, end) + chance.randrange(8))
    with pytest.raises(ValueError, match="differs from what was written"):
        read()


def test_a_check_in_the_background_says_how_far_it_is_and_what_it_found(trained, tmp_path, capsys):
    from console import commands
    from tests.console.runs.jobs import until

    run = copy_of(trained, tmp_path / "runs" / "0001-finetune")
    sign_of_second_moment(run / "checkpoints" / NEW)
    words = ["check", "1", "--runs", str(tmp_path / "runs")]
    with pytest.raises(RequestError, match="add --read-data, or leave --background out"):
        commands.runs([*words, "--background"])
    assert commands.runs([*words, "--read-data", "--background"]) == 0
    state = until(lambda: (json.loads(file.read_text()) if (file := run / "check.json").exists() else {}).get("done") and file)
    found = json.loads(state.read_text())
    # a checkpoint is read up to its first difference
    assert found["total"] / 2 - 2000 < found["read"] <= found["total"]
    assert [(item["step"], bool(item["problem"])) for item in found["checkpoints"]] == [(2, False), (4, True)]
    capsys.readouterr()
    assert commands.runs(words) == 0, "the quick check reads no tensors"
    assert f"every byte: DAMAGED: {NEW}: " in capsys.readouterr().out


def test_conversions_have_digests_that_their_readers_compare(tmp_path, capsys):
    """Both ways: a flipped bit of a weight, another length and a changed small file are named by convert, inspect and runs check."""
    from console import commands
    from console.runs.store import RunStore

    small = run_ranks(1, runs.small_model, tmp_path / "small")[0]
    targets = [tmp_path / "mcore", tmp_path / "hf"]
    for source, target in zip((small, targets[0]), targets, strict=True):
        assert main(["convert", str(source), str(target)]) == 0
        assert main(["inspect", str(target)]) == 0
        data = target / "release" if (target / "release").exists() else target
        weights = max((f for f in data.iterdir() if f.suffix in (".distcp", ".safetensors")), key=lambda f: f.stat().st_size)
        run = RunStore(tmp_path / "runs").create("convert", {"target": str(target)}, ["true"])
        check = ["check", run.id, "--read-data", "--runs", str(tmp_path / "runs")]
        assert commands.runs(check) == 0
        flip(weights, 8 * (weights.stat().st_size // 2) + 5)
        assert main(["convert", str(target), str(tmp_path / "again")]) == 2
        assert "differs from what was written" in capsys.readouterr().err and not (tmp_path / "again").exists()
        assert commands.runs(check) == 1 and "DAMAGED" in capsys.readouterr().out
        flip(weights, 8 * (weights.stat().st_size // 2) + 5)
        assert commands.runs(check) == 0
        config = target / "config.json"
        text = config.read_text()
        config.write_text(text + " ")
        assert main(["inspect", str(target)]) == 1 and "config.json has" in capsys.readouterr().out
        config.write_text(text)
        with open(weights, "ab") as file:
            file.write(b"x")
        assert main(["inspect", str(target)]) == 1 and "were written" in capsys.readouterr().out
        os.truncate(weights, weights.stat().st_size - 1)
        assert main(["inspect", str(target)]) == 0
    assert not (targets[1] / "digests.json").samefile(targets[0] / "digests.json")
