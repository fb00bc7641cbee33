"""Plans that `plan` accepts start with the loss of one process; plans that it refuses would not.

Random layouts of small models, dense and with experts, on one to four gloo processes. A few by default; QWEN3VL_PLANS=200 draws
that many of each kind.
"""

from __future__ import annotations

import os
from random import Random

import pytest

from qwen3vl_core.layout.machine_rules import Machine
from qwen3vl_core.layout.verdict import judge
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.sizes import Architecture
from tests import ranks, tiny
from tests.layout.first_step import BATCH, first_loss

COUNT = int(os.environ.get("QWEN3VL_PLANS", "5"))
# an option is drawn among these, the first one half of the time
CHOICES = {
    "tp": (1, 2, 3, 4), "pp": (1, 2, 3), "cp": (1, 2), "vp": (1, 2, 3), "pp0_layers": (0, 2, 3, 4), "ep": (1, 2, 3), "etp": (1, 2),
    "sequence_parallel": (False, True), "distributed_optimizer": (False, True), "overlap_grad_reduce": (False, True),
    "overlap_param_gather": (False, True), "recompute": ("none", "sel", "full", "offload"), "recompute_layers": (0, 2, 4),
    "micro_batch_size": (2, 1, 4), "pad_length": (0, 64), "precision": ("fp32", "bf16", "fp8"), "attention": ("auto", "flash", "fused"),
    "main_grads_dtype": ("fp32", "bf16"), "use_precision_aware_optimizer": (False, True), "exp_avg_dtype": ("fp32", "bf16"),
    "optimizer_offload": (0.0, 0.5), "freeze": ("", "vision", "vision,projector"),
}  # fmt: skip
# advisory rules: the option would be silently ignored, and the run would start
ADVICE = ("--recompute-layers", "--overlap-param-gather", "--ep", "--etp", "--global-batch-size", "--pad-length")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Of a dense model and of one with experts: the folder, the architecture, one process's first loss."""
    made = []
    for name, model in (("dense", tiny.hf_model(3, layers=6)), ("moe", tiny.hf_moe_model(3, layers=6))):
        folder = tiny.save(model, tmp_path_factory.mktemp(name))
        made.append((folder, Architecture.read(folder), ranks.run_ranks(1, first_loss, folder, {})[0]))
    return made


def draw(random: Random) -> tuple[int, bool, dict]:
    """Random (processes, whether with experts, options)."""
    values = {name: given[0] if random.random() < 0.5 else random.choice(given) for name, given in CHOICES.items()}
    return random.choice((1, 2, 2, 4, 4, 3)), random.random() < 0.4, values


def problems(architecture: Architecture, processes: int, values: dict) -> list[str]:
    """The problems that `plan` reports for this machine without a GPU."""
    options = FinetuneOptions(**values, global_batch_size=BATCH)
    return [str(p) for p in judge(options, architecture=architecture, processes=processes, machine=Machine(0), disk=False).problems]


def drawn(models, seed: str, *, accepted: bool) -> tuple[int, tuple, dict, list[str]]:
    """The first plan of this seed that is accepted, or refused for a single reason that is not advisory."""
    random = Random(seed)
    while True:
        processes, moe, values = draw(random)
        found = problems(models[moe][1], processes, values)
        if not found if accepted else len(found) == 1 and not found[0].startswith(ADVICE):
            return processes, models[moe], values, found


@pytest.mark.parametrize("number", range(COUNT))
def test_an_accepted_plan_starts_with_the_loss_of_one_process(models, number):
    processes, (folder, _, expected), values, _ = drawn(models, f"accepted {number}", accepted=True)
    losses = ranks.run_ranks(processes, first_loss, folder, values)
    assert losses == pytest.approx([expected] * processes, rel=1e-4 if values["precision"] == "fp32" else 3e-2), (processes, values)


@pytest.mark.parametrize("number", range(COUNT))
def test_a_refused_plan_would_not_have_started_right(models, number, monkeypatch):
    processes, (folder, _, expected), values, found = drawn(models, f"refused {number}", accepted=False)
    monkeypatch.setattr(ranks, "DEADLINE_SECONDS", 60)
    try:
        losses = ranks.run_ranks(processes, first_loss, folder, values)
    except Exception:
        # a rank failed, or they waited for each other
        return
    # or the deepstack features of a layer are nowhere, which only the loss shows
    assert any(abs(loss / expected - 1) > 1e-4 for loss in losses), (processes, values, found)
