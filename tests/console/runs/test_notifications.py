"""Who is told of a run's end, failures, stalls and NaN: against a web server of our own, by real supervisors and processes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import signal
import sys
import time

import pytest

from console.commands import main
from console.runs import launch, processes, send_message
from console.runs.companions import wait_for_helpers
from qwen3vl_core import notify
from qwen3vl_core.cli import main as core
from qwen3vl_core.errors import RequestError
from qwen3vl_core.notify import Address, Receivers
from qwen3vl_core.options import FinetuneOptions, to_arguments, to_mapping
from qwen3vl_core.options.planfile import read_plan_file, write_plan
from tests.console.runs.jobs import job, until
from tests.console.runs.test_interrupted_runs import RECORD
from tests.console.runs.test_stalled_runs import STEPS
from tests.console.runs.webhooks import serving

MESSAGE = {"v": 1, "event": "failed", "text": "rank 3 <ended> & died", "run": "0007-x", "host": "node1", "step": 12, "train_iters": 99,
           "loss": 2.5}  # fmt: skip
TEXT = "0007-x on node1: failed\nrank 3 <ended> & died\nstep 12 of 99, loss 2.5000"
SECRET = "S3CRET/tok&en"


@pytest.fixture(autouse=True)
def own_settings(tmp_path, monkeypatch):
    """The settings of each test, where saved addresses are, too."""
    monkeypatch.setenv("QWEN3VL_SETTINGS", str(tmp_path / "mine" / "settings.yaml"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine" / "settings.yaml"


@pytest.fixture
def hooks():
    with serving() as made:
        yield made


def sent(address: Address, message=MESSAGE) -> str:
    return send_message.deliver(address, message, timeout=2.0, waits=(0.0, 0.0), sleep=lambda seconds: None)


# flavours


@pytest.mark.parametrize(
    ("text", "flavour"),
    [
        ("https://oapi.dingtalk.com/robot/send?access_token=x", "dingtalk"), ("https://open.feishu.cn/open-apis/bot/v2/hook/x", "feishu"),
        ("https://open.larksuite.com/open-apis/bot/v2/hook/x", "feishu"), ("https://qyapi.weixin.qq.com/send?key=x", "wecom"),
        ("https://hooks.slack.com/services/T/B/x", "slack"), ("https://example.com/x", "json"), ("slack:https://example.com/x", "slack"),
        ("wecom:http://127.0.0.1:1/x", "wecom"), ("json:https://hooks.slack.com/services/T/B/x", "json"),
    ],
)  # fmt: skip
def test_an_address_is_recognised_by_its_host_or_by_its_name(text, flavour):
    assert notify.parse_url(text).flavour == flavour


@pytest.mark.parametrize(
    ("flavour", "body"),
    [
        ("dingtalk", {"msgtype": "text", "text": {"content": TEXT}}), ("wecom", {"msgtype": "text", "text": {"content": TEXT}}),
        ("feishu", {"msg_type": "text", "content": {"text": TEXT}}), ("json", MESSAGE),
        ("slack", {"text": TEXT.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}),
    ],
)  # fmt: skip
def test_each_service_gets_the_body_that_it_takes(hooks, flavour, body):
    assert sent(notify.parse_url(f"{flavour}:{hooks.url}/hook?key=1")) == ""
    (request,) = hooks.received
    assert request.body == body and request.query == {"key": "1"}
    assert request.headers["Content-Type"] == "application/json; charset=utf-8"


def test_dingtalk_gets_its_signature_in_the_address(hooks):
    address = notify.parse_url(f"dingtalk:{hooks.url}/robot/send?access_token=abc&secret=SECx%2By")
    assert sent(address) == ""
    query = hooks.received[0].query
    stamp = query["timestamp"]
    assert query.keys() == {"access_token", "timestamp", "sign"} and abs(int(stamp) / 1000 - time.time()) < 60
    signed = hmac.new(b"SECx+y", f"{stamp}\nSECx+y".encode(), hashlib.sha256).digest()
    assert base64.b64decode(query["sign"]) == signed


def test_feishu_gets_its_signature_in_the_body(hooks):
    assert sent(notify.parse_url(f"feishu:{hooks.url}/hook/abc?secret=xyz")) == ""
    request = hooks.received[0]
    stamp = request.body["timestamp"]
    assert request.query == {} and abs(int(stamp) - time.time()) < 60
    assert base64.b64decode(request.body["sign"]) == hmac.new(f"{stamp}\nxyz".encode(), b"", hashlib.sha256).digest()


def test_user_and_password_of_an_address_become_a_header(hooks):
    assert sent(notify.parse_url(hooks.url.replace("http://", "http://me:p%40ss@") + "/x")) == ""
    assert base64.b64decode(hooks.received[0].headers["Authorization"].removeprefix("Basic ")) == b"me:p@ss"


# failures


@pytest.mark.parametrize(
    ("flavour", "answers", "requests", "failure"),
    [
        ("json", [(500, {}, b""), (503, {}, b""), (200, {}, b"")], 3, ""),
        ("json", [(429, {"Retry-After": "1"}, b""), (200, {}, b"")], 2, ""),
        ("json", [(502, {}, b"")], 3, "it answers 502 (3 attempts)"),
        ("json", [(403, {}, b"")], 1, "it answers 403"),
        ("json", [(302, {"Location": "/elsewhere"}, b"")], 1, "it answers 302 and names another address, which is not followed"),
        ("json", [(307, {"Location": "/elsewhere"}, b"")], 1, "it answers 307 and names another address, which is not followed"),
        ("dingtalk", [(200, {}, b'{"errcode": 310000, "errmsg": "sign not match"}')], 1, "refused with code 310000 (sign not match)"),
        ("dingtalk", [(200, {}, b'{"errcode": 130101}'), (200, {}, b'{"errcode": 0}')], 2, ""),
        ("feishu", [(200, {}, b'{"code": 19021, "msg": "sign match fail"}')], 1, "refused with code 19021 (sign match fail)"),
        ("wecom", [(200, {}, b"<html>")], 1, "its answer is not JSON: another service?"),
        ("slack", [(404, {}, b"no_team")], 1, "it answers 404"),
    ],
)
def test_what_may_pass_is_tried_again_and_what_will_not_is_not(hooks, flavour, answers, requests, failure):
    hooks.answers["/hook"] = answers
    line = sent(notify.parse_url(f"{flavour}:{hooks.url}/hook?access_token={SECRET}"))
    assert len(hooks.of("/hook")) == requests and not hooks.of("/elsewhere")
    assert (failure in line if failure else line == "") and SECRET not in line


def test_a_server_that_never_ends_its_answer_costs_its_time_and_no_more(hooks):
    hooks.slow.add("/slow")
    began = time.monotonic()
    line = send_message.deliver(notify.parse_url(f"{hooks.url}/slow"), MESSAGE, timeout=0.5, waits=())
    assert "no answer in time" in line and time.monotonic() - began < 30


def test_nobody_listens(hooks):
    assert "Connection refused (3 attempts)" in sent(Address("json", "http://127.0.0.1:9/x"))


# the command


def test_the_command_gets_the_message_and_no_shell_reads_its_words(tmp_path):
    got = "json.dumps([sys.argv[1:], json.load(sys.stdin), os.environ['QWEN3VL_NOTIFY_EVENT']])"
    program = f"import json, os, sys; print({got}, file=open(sys.argv[1], 'w'))"
    words = [sys.executable, "-S", "-c", program, str(tmp_path / "got"), "$(touch ran); `x` && y"]
    assert send_message.call(words, MESSAGE) == ""
    assert json.loads((tmp_path / "got").read_text()) == [words[4:], MESSAGE, "failed"]


@pytest.mark.parametrize(
    ("words", "seconds", "failure"),
    [
        ([sys.executable, "-S", "-c", "raise SystemExit(3)"], 60, "ended with exit code 3"),
        (["/no/such/program"], 60, "could not be started (No such file or directory)"),
        ([sys.executable, "-S", "-c", "import time; time.sleep(600)"], 0.2, "did not end in 0.2 s; killed"),
    ],
)
def test_a_command_that_fails_says_so(words, seconds, failure):
    assert failure in send_message.call(words, MESSAGE, seconds)


def test_everybody_is_told_at_once_and_one_failure_hinders_no_other(hooks):
    told: dict[str, str] = {}
    to = Receivers((Address("json", f"{hooks.url}/a"), Address("slack", f"{hooks.url}/b")), ("/no/such/program",))
    assert send_message.send(to, MESSAGE, told.__setitem__) == 1
    assert len(hooks.received) == 2 and told["json at 127.0.0.1"] == "" and "could not be started" in told["command /no/such/program"]


# what is recorded


def test_no_record_and_no_command_holds_an_address(store, tmp_path, own_settings, capsys):
    url = f"https://oapi.dingtalk.com/robot/send?access_token={SECRET}"
    options = FinetuneOptions(load="base", train_data="data", notify=[url, "env:MY_HOOK"])
    run = store.create("finetune", options, job("print('x')"))
    for file in (run.path / "plan.json", run.path / "command.sh", write_plan(tmp_path / "plan.yaml", options)):
        assert SECRET not in file.read_text() and "oapi" not in file.read_text()
    assert SECRET not in " ".join(to_arguments(options))
    recorded = run.plan["options"]["notify"]
    assert recorded == to_mapping(options)["notify"] == read_plan_file(FinetuneOptions, tmp_path / "plan.yaml")["notify"]
    assert recorded[0].startswith("saved:") and recorded[1] == "env:MY_HOOK"
    saved = own_settings.with_name("addresses.json")
    assert saved.stat().st_mode & 0o777 == 0o600
    assert [address.url for address in notify.receivers(recorded[:1]).addresses] == [notify.parse_url(url).url]
    saved.unlink()
    found = notify.receivers(recorded)
    assert (
        not found and "give its URL again, or env:NAME" in found.problems[0] and "this environment variable is not set" in found.problems[1]
    )


@pytest.mark.parametrize(
    "text", [f"ftp://host/{SECRET}", f"slack:{SECRET}", f"https:///{SECRET}", f"https://h:99999/{SECRET}", "env:a b", "saved:x"]
)
def test_an_address_that_nothing_can_use_is_refused_without_being_shown(text, capsys):
    assert core(["finetune", "--load", "x", "--train-data", "y", "--notify", text]) == 2
    lines = capsys.readouterr().err
    assert "--notify" in lines and SECRET not in lines
    with pytest.raises(RequestError):
        notify.check(text)


def test_the_settings_are_used_by_runs_that_name_nobody(own_settings, monkeypatch):
    monkeypatch.setenv("TWO_HOOKS", "https://example.com/1 slack:https://example.com/2")
    own_settings.write_text("notify: [env:TWO_HOOKS]\nnotify_command: notify-send 'a run'\n")
    found = notify.receivers([])
    assert [a.flavour for a in found.addresses] == ["json", "slack"] and found.command == ("notify-send", "a run") and not found.problems
    assert not notify.receivers(["none"]) and len(notify.receivers(["https://example.com/3"]).addresses) == 1
    own_settings.write_text("notify: {a: 1}\nnotify_command: [1]\n")
    assert not notify.receivers([])


# runs


def finetune(store, program, hooks, **options):
    made = FinetuneOptions(load="base", train_data="data", train_iters=4, restart_wait=0.0, notify=[f"{hooks.url}/{SECRET[:6]}"], **options)
    run = store.create("finetune", made, job(RECORD + program))
    launch.start(run)
    return run


def told_of(run, hooks):
    """The events that were sent, once all of them are."""
    assert wait_for_helpers(run.path, 120)
    assert SECRET[:6] not in run.log.read_text()
    return [request.body["event"] for request in hooks.received]


@pytest.mark.parametrize(
    ("program", "status", "text"),
    [
        ("row(4); event('done', 4)", "done", "all steps are done"),
        ("row(2); os.kill(os.getpid(), 9)", "failed", "ended by SIGKILL"),
        ("sys.exit(3)", "failed", "exit code 3"),
    ],
)
def test_the_end_of_a_run_is_told_also_of_a_killed_one(store, hooks, program, status, text):
    run = finetune(store, program, hooks)
    assert launch.wait(run, 150) == status
    assert told_of(run, hooks) == [status]
    body = hooks.received[0].body
    assert text in body["text"] and (body["run"], body["status"], body["train_iters"], body["path"]) == (run.id, status, 4, str(run.path))


def test_a_command_that_cannot_be_started_is_told(store, hooks):
    run = store.create("finetune", FinetuneOptions(load="b", train_data="d", notify=[f"{hooks.url}/a"]), ["/no/such/program"])
    with pytest.raises(Exception, match="could not be started"):
        launch.start(run)
    assert told_of(run, hooks) == ["failed"] and "could not be started" in hooks.received[0].body["text"]


def test_restarts_are_told_each_and_the_last_failure(store, hooks):
    run = finetune(store, "row(1); os.kill(os.getpid(), 9)", hooks, max_restarts=2)
    assert launch.wait(run, 150) == "failed"
    assert sorted(told_of(run, hooks)) == ["failed", "restart", "restart"]


def test_nan_is_told_once_in_a_while(store, hooks):
    run = finetune(store, "row(1); event('nan', 2); event('nan', 3); note('up'); until('go'); row(4); event('done', 4)", hooks)
    until(lambda: hooks.received)
    assert hooks.received[0].body["event"] == "nan" and hooks.received[0].body["loss"] == 1.0 and run.alive
    (run.path / "go").touch()
    assert launch.wait(run, 150) == "done" and told_of(run, hooks) == ["nan", "done"]


def test_a_stall_is_told_and_when_steps_come_again(store, hooks, monkeypatch):
    monkeypatch.setenv("QWEN3VL_STALL_SECONDS", "0.2")
    program = STEPS + "steps(1, 7); note('up'); until('go'); steps(7, 9); until('end'); event('done', 4)"
    made = FinetuneOptions(load="base", train_data="data", train_iters=4, notify=[f"{hooks.url}/{SECRET[:6]}"])
    run = store.create("finetune", made, job(program))
    launch.start(run)
    until(lambda: hooks.received)
    assert hooks.received[0].body["event"] == "stalled" and "no step for" in hooks.received[0].body["text"]
    (run.path / "go").touch()
    until(lambda: len(hooks.received) > 1)
    (run.path / "end").touch()
    assert launch.wait(run, 150) == "done" and told_of(run, hooks)[:2] == ["stalled", "moving"]


def test_a_hanging_webhook_and_a_hanging_command_neither_delay_nor_end_a_run(store, hooks):
    hooks.slow.add(f"/{SECRET[:6]}")
    sleeper = f"{sys.executable} -S -c 'import time; time.sleep(600)'"
    began = time.monotonic()
    run = finetune(store, "row(1); sys.exit(3)", hooks, notify_command=sleeper, max_restarts=1)
    assert launch.wait(run, 150) == "failed"
    assert time.monotonic() - began < 60, "as long as a message may take is 120 s"
    assert run.state["restarts"] == 1 and not wait_for_helpers(run.path, 0.0)
    launch.resume(run)  # nor are their processes taken for the run's
    assert launch.wait(run, 150) == "failed"
    for sender in senders_of(run):
        processes.kill(processes.descendants(sender))
        os.kill(sender, signal.SIGKILL)


def senders_of(run) -> list[int]:
    """Processes that hold the file `helpers` of a run open."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if any(os.readlink(f"/proc/{name}/fd/{fd}") == str(run.path / "helpers") for fd in os.listdir(f"/proc/{name}/fd")):
                found.append(int(name))
    return found


def test_what_cannot_be_used_is_a_line_in_the_log_and_on_the_terminal(store, capsys, monkeypatch):
    monkeypatch.delenv("NO_SUCH_HOOK", raising=False)
    from console.runs_command import begin

    run = store.create("finetune", FinetuneOptions(load="b", train_data="d", notify=["env:NO_SUCH_HOOK"]), job("pass"))
    assert begin(run, launch.start, True) == 0
    assert "--notify env:NO_SUCH_HOOK: this environment variable is not set" in run.log.read_text()
    assert "--notify env:NO_SUCH_HOOK: this environment variable is not set" in capsys.readouterr().err


# qwen3vl notify, plan


def notified(*words: str, monkeypatch) -> int:
    monkeypatch.setattr(sys, "argv", ["qwen3vl", "notify", *words])
    return main()


def test_an_address_can_be_tried(hooks, capsys, monkeypatch, own_settings):
    assert notified("--test", f"slack:{hooks.url}/{SECRET[:6]}", monkeypatch=monkeypatch) == 0
    assert "slack at 127.0.0.1: taken in" in capsys.readouterr().out and "a test of qwen3vl notify" in hooks.received[0].body["text"]
    hooks.answers["/no"] = [(404, {}, b"")]
    assert notified("--test", f"{hooks.url}/no", monkeypatch=monkeypatch) == 1
    assert "json at 127.0.0.1: it answers 404" in capsys.readouterr().err
    assert notified(monkeypatch=monkeypatch) == 2
    assert "nobody is told; give an address, or write notify:" in capsys.readouterr().err
    own_settings.write_text(f"notify: slack:{hooks.url}/x\n")
    assert notified(monkeypatch=monkeypatch) == 0 and "slack at 127.0.0.1" in capsys.readouterr().out


def test_the_plan_says_who_is_told(capsys):
    words = [
        "plan",
        "--size",
        "tiny",
        "--gpus",
        "1",
        "--memory",
        "80",
        "--seq-length",
        "512",
        "--mirror",
        "/mnt/other",
        "--mirror-every",
        "3",
    ]
    core([*words, "--notify", f"https://hooks.slack.com/services/{SECRET}", "--notify-command", "notify-send x"])
    printed = capsys.readouterr().out
    assert (
        "told of its end, of failures, stalls and NaN: slack at hooks.slack.com, command notify-send" in printed and SECRET not in printed
    )
    assert "every 3 checkpoints the newest is copied to /mnt/other; the 2 newest are kept" in printed
