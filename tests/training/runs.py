"""Whole runs in processes that are forked with everything imported, and killed or asked to stop at a chosen moment."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from qwen3vl_core.demo.examples import example
from qwen3vl_core.demo.workspace import BASE
from qwen3vl_core.layout.torchrun_command import free_port
from qwen3vl_core.options import FinetuneOptions, to_mapping
from tests.ranks import _context

WRITING = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
DEADLINE_SECONDS = 240


def scenes(folder: Path, count: int = 24) -> Path:
    """Drawn scenes with captions, prepared; the answer of number 5 is too long for a short --seq-length."""
    from qwen3vl_core.cli import main

    records = []
    for number in range(count):
        _, picture, long, short = example(900_100_000 + number)
        picture.save(folder / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": long if number == 5 else short}]
        records.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (folder / "captions.json").write_text(json.dumps(records))
    assert main(["prepare", str(folder / "captions.json"), "--to", str(folder / "data"), "--split", "5,1,0"]) == 0
    return folder / "data"


def small_model(folder: Path, experts: int = 0, layers: int = 6) -> Path:
    """A random model of a few hundred thousand parameters that reads the demo's pictures and words. experts: of each layer."""
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from qwen3vl_core.checkpoint.hf import copy_side_files
    from tests.tiny import randomised

    values = json.loads((BASE / "config.json").read_text())
    values.pop("dtype"), values["text_config"].pop("dtype"), values["vision_config"].pop("dtype", None)
    small = dict(num_hidden_layers=layers, hidden_size=64, intermediate_size=96, head_dim=16, num_attention_heads=4, num_key_value_heads=2)
    values["text_config"] |= small
    values["text_config"]["rope_parameters"] |= {"mrope_section": [4, 2, 2]}
    values["vision_config"] |= dict(hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=64)
    if experts:
        values["model_type"], values["tie_word_embeddings"] = "qwen3_vl_moe", False
        values["text_config"] |= {
            "model_type": "qwen3_vl_moe_text", "num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
            "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True, "router_aux_loss_coef": 0.001,
            "tie_word_embeddings": False,
        }  # fmt: skip
        values["vision_config"]["model_type"] = "qwen3_vl_moe"
    import torch

    torch.manual_seed(3)
    config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    assert isinstance(config, type(AutoConfig.for_model(values["model_type"])))
    randomised(AutoModelForImageTextToText.from_config(config).float()).save_pretrained(folder)
    own = (folder / "config.json").read_text()
    copy_side_files(BASE, folder)
    (folder / "config.json").write_text(own)
    return folder


def plan(run_dir: Path, data: Path, **changes) -> FinetuneOptions:
    """`plan.json` of a run of six steps, and its options."""
    values = dict(
        load=str(BASE), train_data=str(data), precision="fp32", micro_batch_size=2, global_batch_size=4, seq_length=256,
        train_iters=6, lr=1e-4, min_lr=1e-5, lr_warmup_iters=1,
    )  # fmt: skip
    options = FinetuneOptions(**(values | changes))
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "plan.json").write_text(json.dumps({"kind": "finetune", "options": to_mapping(options)}))
    return options


def rows(run_dir: Path, kind: str = "train") -> list[dict]:
    file = run_dir / "metrics.jsonl"
    return [r for r in map(json.loads, file.read_text().splitlines() if file.exists() else ()) if r["kind"] == kind]


def events(run_dir: Path, name: str) -> list[dict]:
    return [r for r in rows(run_dir, "event") if r["event"] == name]


def losses(run_dir: Path) -> list[float]:
    return [r["loss"] for r in rows(run_dir)]


def captions(run_dir: Path) -> list[tuple[int, str, str]]:
    """(step, picture, text) of each caption that the run wrote."""
    rows = map(json.loads, (run_dir / "samples.jsonl").read_text().splitlines())
    return [(row["step"], row["image"], row["text"]) for row in rows]


def log(run_dir: Path) -> str:
    """The output of the last `train`."""
    return (run_dir / "output.log").read_text()


def _train(
    run_dir: Path, rank: int, world: int, port: int, moment: int | str | None, number: int, environment: dict[str, str], results
) -> None:
    """`python -m qwen3vl_core.training RUN_DIR`, as torchrun starts it on each rank."""
    import torch

    from qwen3vl_core.training.__main__ import main

    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)
        }  # fmt: skip
    os.environ |= {"QWEN3VL_PROGRESS": "lines"} | environment
    process, seen, sent = os.getpid(), 0, []
    # a writer that lives on must not hold the pipes of the tests
    for stream in (1, 2):
        os.dup2(os.open(run_dir / "output.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), stream)

    # of the open file, which every process that is forked from here has too: `wait_for_all`
    fcntl.flock(1, fcntl.LOCK_SH)

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event not in WRITING or not str(arguments[0]).startswith(str(run_dir)):
            return
        seen += 1
        if (seen == moment) if not isinstance(moment, str) else (moment in str(arguments[0]) and not sent):
            sent.append(seen)
            # to the run itself, also when this is one of the processes that write its checkpoint
            os.kill(process, number)

    if rank == 0:
        sys.addaudithook(watch)
    code = main([str(run_dir)])
    sys.stdout.flush()
    sys.stderr.flush()
    if rank == 0:
        results.put((code, seen))
        results.close()
        results.join_thread()
    os._exit(code)


def wait_for_all(run_dir: Path, seconds: int = DEADLINE_SECONDS) -> None:
    """Return when no process of the last `train` is left, those that it forked among them. Raises TimeoutError."""

    def late(*_) -> None:
        raise TimeoutError(f"a process of {run_dir} is still there after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        with open(run_dir / "output.log") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def train(
    run_dir: Path, moment: int | str | None = None, number: int = signal.SIGKILL, world: int = 1, **environment: str
) -> tuple[int, Any]:
    """Train the run that is planned there on `world` ranks: (exit code, times that anything was opened or moved in its folder).

    moment: of these times the one at which the first rank gets the signal `number`, or the first with a path that has this in it.
    (-9, moment) for a run that it killed. environment: variables for it.
    """
    (run_dir / "output.log").unlink(missing_ok=True)
    results = _context.Queue()
    port = free_port() if world > 1 else 0
    last = (world, port, moment, number, environment, results)
    ranks = [_context.Process(target=_train, args=(run_dir, rank, *last)) for rank in range(world)]
    for process in ranks:
        process.start()
    first = ranks[0]
    first.join(DEADLINE_SECONDS)
    for process in ranks[1:]:
        # as torchrun does when one of them is gone
        process.join(DEADLINE_SECONDS if first.exitcode == 0 else 0)
        process.kill()
    if first.exitcode is not None and first.exitcode < 0:
        return first.exitcode, moment
    assert first.exitcode is not None, f"the run hangs:\n{log(run_dir)}"
    return results.get(timeout=DEADLINE_SECONDS)
