"""CUDA graphs on two GPUs: data, tensor, sequence, context and expert parallel runs have the losses of eager execution."""

from __future__ import annotations

import faulthandler
import json
import os
import socket

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")]
if torch.cuda.is_available():
    pytest.importorskip("transformer_engine.pytorch")

from tests import tiny
from tests.gpu.test_cuda_graphs import SHAPE, losses

LAYOUTS = {
    "DP2": {},
    "DP2 distributed optimizer": {"distributed_optimizer": True, "overlap_grad_reduce": True},
    "TP2": {"tp": 2},
    "TP2 SP": {"tp": 2, "sequence_parallel": True},
    "TP2 SP recompute": {"tp": 2, "sequence_parallel": True, "recompute": "full"},
    "CP2": {"cp": 2},
    "PP2": {"pp": 2},
    "EP2": {"ep": 2, "distributed_optimizer": True},
    "EP2 recompute": {"ep": 2, "recompute": "sel"},
    "EP2 LoRA": {"ep": 2, "lora_rank": 8},
}
EXPERTS = "EP2"
"""Layouts whose name begins so are those of the model with experts, on packed rows alone."""
HANG_SECONDS = 60
FORMS = [(name, True) for name in LAYOUTS] + [("TP2 SP", False), ("CP2", False)]


def rank_losses(rank: int, port: int, folders: dict[bool, str], out: str, forms: list[tuple[str, bool]]) -> None:
    """The losses of every form, with graphs and without, on one of two ranks."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    torch.cuda.set_device(rank)
    # where a hang is, in the test's output
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    for number, (name, packed, graphs) in enumerate((*form, graphs) for form in forms for graphs in (True, False)):
        store = torch.distributed.FileStore(f"{out}/{number}", 2)
        torch.distributed.init_process_group("nccl", store=store, rank=rank, world_size=2, device_id=torch.device("cuda", rank))
        try:
            result = losses(folders[name.startswith(EXPERTS)], packed=packed, graphs=graphs, **LAYOUTS[name])
        except Exception as error:
            result = repr(error)
        with open(f"{out}/rank{rank}.jsonl", "a") as file:
            print(json.dumps([name, packed, graphs, result]), file=file)
        if isinstance(result, str):
            # the other rank may wait for this one
            os._exit(1)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(request, tmp_path_factory) -> dict:
    # the forms of the selected tests only: each takes seconds
    chosen = [
        (item.callspec.params["layout"], item.callspec.params["packed"])
        for item in request.session.items
        if "layout" in getattr(item, "fixturenames", ())
    ]
    models = {False: tiny.hf_model(7, **SHAPE), True: tiny.hf_moe_model(7, **SHAPE, expert_ffn=64)}
    folders = {experts: str(tiny.save(model.bfloat16(), tmp_path_factory.mktemp("model"))) for experts, model in models.items()}
    out = tmp_path_factory.mktemp("losses")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawned = torch.multiprocessing.spawn(rank_losses, (port, folders, str(out), chosen), nprocs=2, join=False)
    try:
        while not spawned.join():
            pass
    except Exception as error:
        print(error)
    lines = [json.loads(line) for rank in range(2) for line in (out / f"rank{rank}.jsonl").read_text().splitlines()]
    return {(name, packed, graphs): result for name, packed, graphs, result in lines}


@pytest.mark.parametrize(("layout", "packed"), FORMS, ids=lambda value: value if isinstance(value, str) else "packed" if value else "rows")
def test_replayed_losses_equal_eager_losses(results, layout, packed):
    (replayed, count), (one_by_one, none) = (results[layout, packed, graphs] for graphs in (True, False))
    assert none == 0 and count >= 4
    for (loss, norm), (other, other_norm) in zip(one_by_one, replayed, strict=True):
        assert other == pytest.approx(loss, rel=2e-3) and other_norm == pytest.approx(norm, rel=2e-2)
