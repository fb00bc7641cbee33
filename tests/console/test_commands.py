"""`qwen3vl runs` and recorded runs, as a user types them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys

import pytest

from console import commands
from console.runs import launch
from console.runs.store import RunStore
from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import FinetuneOptions, PrepareOptions
from tests.console.runs.jobs import EXITS_3, ROOT, SLEEPS, UNTIL_GO, job, run_store, until


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("QWEN3VL_GRACE", "0.4")
    monkeypatch.setenv("QWEN3VL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "160")
    with run_store(tmp_path / "runs") as made:
        yield made


@pytest.fixture
def typed(capsys):
    """`typed("list")` runs `qwen3vl runs list` and returns its exit code and output."""

    def run(*words):
        code = commands.runs(list(words))
        return code, capsys.readouterr().out

    return run


def ended(store, program, name="job", options=None):
    run = store.create(name, options or {}, job(program))
    launch.start(run)
    launch.wait(run, 150)
    return run


def metrics(run, *losses):
    rows = [{"v": 1, "kind": "train", "step": n, "loss": loss, "lr": 1e-5} for n, loss in enumerate(losses, 1)]
    rows.append({"v": 1, "kind": "eval", "step": len(losses), "loss": losses[-1] + 0.5})
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))


def finetune(store, program=EXITS_3, **options):
    made = FinetuneOptions(load="base", train_data="data", train_iters=4, **options)
    run = store.create("finetune", made, job(program))
    launch.start(run)
    launch.wait(run, 150)
    return run


def test_without_arguments_the_runs_are_listed(store, typed):
    assert typed() == (0, f"no runs in {store.root}; qwen3vl finetune starts one\n")
    ended(store, "print('well')")
    metrics(finetune(store), 3.0, 2.25)
    live = store.create("job", {}, job(SLEEPS))
    launch.start(live)
    code, out = typed()
    lines = [line.split() for line in out.splitlines()]
    for words in ((), ("list",), ("list", "--runs", str(store.root))):
        # a second may pass between two calls: the ages differ
        assert [line.split()[:-1] for line in typed(*words)[1].splitlines()] == [line[:-1] for line in lines] and code == 0
    assert lines[0] == ["ID", "KIND", "STATUS", "STEP", "LOSS", "AGE"]
    assert lines[1][:4] == ["▶", "0003-job", "job", "running"]
    assert lines[2][:8] == ["✗", "0002-finetune", "finetune", "failed,", "exit", "3", "2/4", "2.25"]
    assert lines[3][:4] == ["✓", "0001-job", "job", "done"]


def test_the_table_fits_a_narrow_terminal(store, typed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    finetune(store, name="a name that is longer than it should be")
    assert max(map(len, typed()[1].splitlines())) <= 40


def test_a_run_is_shown_with_plan_state_metrics_and_failure_reason(store, typed):
    run = finetune(store, "print('\\x1b[31mCUDA out of memory\\x1b[0m'); sys.exit(3)", lr=3e-4)
    metrics(run, 3.0, 2.25)
    code, out = typed("show", "1")
    assert code == 0 and out.startswith("✗ 0001-finetune  finetune  failed, exit code 3\n")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in (f"folder {run.path}", "--lr 0.0003", "last step 2/4", "loss 2.25", "last evaluation 2/4", "val loss 2.75"):
        assert line.removeprefix("--") in lines
    assert "global_batch_size" not in out and f"load {run.options['load']}" in lines
    fix = "the fix: --recompute none → full: activations are recomputed\n  qwen3vl runs clone 1 --set recompute=full\n"
    assert out.endswith(f"end of its log\n  CUDA out of memory\n\n{fix}")


def test_a_lost_run_says_so_and_what_to_do(store, typed):
    run = store.create("job", {}, job(SLEEPS))
    launch.start(run)
    os.kill(run.state["supervisor_pid"], signal.SIGKILL)
    until(lambda: run.status == "lost")
    assert " lost " in typed("list")[1]
    assert "its supervisor is gone" in typed("show", "1")[1]
    assert typed("stop", "1") == (0, "run 0001-job: stopped\n")
    assert launch.wait(run) == "stopped"


def test_logs_prints_the_last_lines_without_control_sequences(store, typed):
    ended(store, "for n in range(100): print(f'\\x1b[1mline {n}\\x07')\nprint('half', end='')")
    assert typed("logs", "1", "-n", "2") == (0, "line 98\nline 99\nhalf\n")
    assert len(typed("logs", "job")[1].splitlines()) == 41


def test_logs_shows_our_own_lines_without_their_tags_and_finds_them_so(store, typed):
    run = ended(store, "pass")
    run.log.write_text("step 1\nqwen3vl[stop]: asked to stop; 60 s to end\nqwen3vl[work]: the disk is full\n")
    assert typed("logs", "1") == (0, "step 1\nqwen3vl: asked to stop; 60 s to end\nqwen3vl: the disk is full\n")
    assert typed("logs", "1", "--follow", "--grep", "qwen3vl: asked") == (0, "qwen3vl: asked to stop; 60 s to end\n")
    assert typed("logs", "1", "--grep", "work") == (0, "")


def test_logs_follows_until_the_end(store):
    run = store.create("job", {}, job("print('first')\n" + UNTIL_GO))
    launch.start(run)
    # tests that run in a shell's background are started without Ctrl-C
    program = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from console import commands\nsys.exit(commands.runs(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", program, "logs", "1", "--follow", "--runs", str(store.root)]
    followers = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [f.stdout.readline() for f in followers] == ["first\n"] * 2
    followers[0].send_signal(signal.SIGINT)
    out, err = followers[0].communicate(timeout=150)
    assert followers[0].returncode == 0 and "runs logs 1 --follow shows it again" in err and "Traceback" not in err
    assert run.status == "running"
    (run.path / "go").touch()
    out, err = followers[1].communicate(timeout=150)
    assert (followers[1].returncode, out, err) == (0, "gone on\n", "run 0001-job: done\n")


def test_stop_waits_and_resume_continues(store, typed):
    run = store.create("job", {}, job(UNTIL_GO))
    launch.start(run)
    until((run.path / "up").exists)
    assert typed("stop", "1") == (0, "run 0001-job: stopped\n")
    (run.path / "go").touch()
    code, out = typed("resume", "1")
    assert code == 0 and out.startswith("run 0001-job started\n")
    assert "qwen3vl runs logs 1 --follow" in out and "qwen3vl runs stop 1" in out and "--runs" not in out
    assert launch.wait(run, 150) == "done"
    with pytest.raises(RequestError, match="is done; nothing to resume"):
        commands.runs(["resume", "1"])
    with pytest.raises(RequestError, match="done already; nothing to stop"):
        commands.runs(["stop", "1"])


def test_a_detached_run_names_the_commands_to_follow_and_stop_it(store, capsys, tmp_path):
    options = PrepareOptions(source="nowhere.json", to=str(tmp_path / "data"))
    elsewhere = tmp_path / "other runs"
    assert commands.launch("prepare", options, runs=elsewhere, foreground=False) == 0
    out = capsys.readouterr().out
    assert f"qwen3vl runs logs 1 --follow --runs '{elsewhere}'" in out and f"qwen3vl runs stop 1 --runs '{elsewhere}'" in out
    run = RunStore(elsewhere).get(1)
    assert launch.wait(run, 150) == "failed"
    assert run.exit_code == 2 and "nowhere.json" in run.log.read_text()


def test_the_foreground_shows_the_work_and_ends_with_its_exit_code(store, capfd, tmp_path):
    options = PrepareOptions(source=str(tmp_path / "nowhere.json"), to=str(tmp_path / "data"))
    assert commands.launch("prepare", options, runs=store.root, foreground=True) == 2
    out, err = capfd.readouterr()
    assert out.startswith("qwen3vl: ") and "nowhere.json" in out and out.count("\n") == 1
    assert err.startswith("run 0001-prepare in ") and "failed" in err and "exit code 2; its log is" in err


@pytest.mark.parametrize(("program", "code"), [("print(1)", 0), (EXITS_3, 1), ("sys.exit(2)", 2)])
def test_exit_codes_of_a_resumed_run_in_the_foreground(store, program, code, capfd):
    run = ended(store, "sys.exit(9)")
    plan = json.loads((run.path / "plan.json").read_text())
    (run.path / "plan.json").write_text(json.dumps({**plan, "command": job(program)}))
    assert commands.runs(["resume", "1", "--foreground"]) == code
    assert capfd.readouterr().out.startswith("qwen3vl: resumed")


def test_ctrl_c_in_the_foreground_stops_the_run(store):
    ended(store, EXITS_3)
    run = store.get(1)
    plan = json.loads((run.path / "plan.json").read_text())
    (run.path / "plan.json").write_text(json.dumps({**plan, "command": job("print('up')\n" + SLEEPS)}))
    program = "import sys\nfrom console import commands\nsys.exit(commands.runs(sys.argv[1:]))"
    screen = subprocess.Popen([sys.executable, "-c", program, "resume", "1", "--foreground"], cwd=ROOT,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    while screen.stdout.readline() != "up\n":
        pass
    screen.send_signal(signal.SIGINT)
    out, err = screen.communicate(timeout=150)
    assert screen.returncode == 130 and "asked to stop" in out and "run 0001-job: stopped in 0:0" in err
    assert run.status == "stopped"


def test_a_clone_starts_with_changed_options(store, typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = store.create("prepare", PrepareOptions(source="none.json", to="data", split="8,1,1", check="none"))
    code, out = typed("clone", "1", "--set", "shard-size=20000", "source=other.json", "--set", "split=")
    assert code == 0 and out.startswith("run 0002-prepare started")
    clone = store.get(2)
    changed = {"source": str(tmp_path / "other.json"), "shard_size": 20000, "split": "9,1,0"}
    assert clone.options == {**first.options, **changed}
    assert "--shard-size" in clone.command and "--split" not in clone.command
    launch.wait(clone, 150)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["fly"], "ACTION fly: must be one of list, show"),
        (["show"], "ID: required; number, id or name of a run"),
        (["show", "9"], "run 9: no such run"),
        (["logs", "1", "-n", "0"], "-n: 0: must be a whole number from 1"),
        (["compare", "1"], "B: required; number, id or name of a run"),
        (["clone", "1", "--set", "lr"], "--set lr: must be OPTION=VALUE"),
        (["clone", "1", "--set", "speed=1"], "--set speed=1: no such option speed; choose from load, size"),
        (["clone", "1", "--set", "lr=fast"], "--lr fast: must be a number"),
        (["clone", "1", "--set", "min-lr=1"], "--min-lr 1: must be at most --lr 1e-05"),
        (["clone", "2"], "a run of kind job cannot be cloned; only download, prepare, inspect, convert, finetune, compare can"),
        (["list", "--runs", "/dev/null"], "--runs /dev/null: is a file"),
    ],
)
def test_a_wrong_request_is_a_one_line_error(store, words, line):
    store.create("finetune", FinetuneOptions(load="base", train_data="data"), ["true"])
    store.create("job", {}, ["true"])
    with pytest.raises(RequestError) as caught:
        commands.runs(words)
    assert line in str(caught.value) and "\n" not in str(caught.value)
    assert len(store.list()) == 2


def test_two_runs_side_by_side_show_what_differs(store, typed):
    for lr, loss in ((1e-5, 3.0), (3e-4, 2.0)):
        metrics(finetune(store, lr=lr, name=f"lr {lr}"), 4.0, loss)
    code, out = typed("compare", "1", "2")
    lines = [line.split() for line in out.splitlines()]
    assert code == 0 and lines[0] == ["0001-lr-1e-05", "0002-lr-0-0003"]
    assert ["--lr", "1e-05", "0.0003"] in lines and ["loss", "3", "2"] in lines and ["val", "loss", "3.5", "2.5"] in lines
    assert not any("--load" in line or "--name" in line for line in lines)
    assert typed("compare", "1", "1")[1].endswith("no option differs\n")


def test_runs_of_different_kinds_are_compared_alike_in_text_and_json(store, typed):
    metrics(finetune(store, lr=3e-4), 4.0, 3.0)
    store.create("job", {"x": 1}, ["true"])
    code, out = typed("compare", "1", "2", "--json")
    found = json.loads(out)
    text = typed("compare", "1", "2")[1]
    options = [line.split()[0] for line in text.splitlines() if line.startswith("--")]
    assert code == 0 and options == [f"--{name.replace('_', '-')}" for name in found["options"]] and "--x" in options
    assert "--seq-length" not in options, "a default of one kind is no difference between kinds"
    words = [line.split() for line in text.splitlines()]
    assert words[0] == found["runs"] and ["kind", *found["kind"]] in words and ["status", *found["status"]] in words
    assert ["loss", "3", "–"] in words and found["train"][0]["loss"] == 3.0 and found["train"][1] == {}


def test_the_console_says_when_it_has_no_terminal_or_no_workspace(store, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.delenv("TEXTUAL_DRIVER", raising=False)
    with pytest.raises(RequestError, match="the console needs a terminal"):
        commands.console(["--runs", str(store.root)])
    with pytest.raises(RequestError, match=r"--workspace .*missing: no such folder; qwen3vl demo creates one"):
        commands.console(["--workspace", str(tmp_path / "missing")])
    with pytest.raises(RequestError, match="--fast: no such option; see qwen3vl console --help"):
        commands.console(["--fast"])


def test_the_record_needs_no_screen_and_no_heavy_import():
    heavy = "[m for m in ('textual', 'torch', 'transformers') if m in sys.modules]"
    program = f"import sys\nfrom console import commands\ncommands.runs(['--runs', sys.argv[1]])\nprint({heavy})"
    done = subprocess.run([sys.executable, "-c", program, "none"], cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
