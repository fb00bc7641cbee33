"""Simulates a host and a device on a CPU: a tensor is "on the device" unless it came from `.cpu()`.

So both halves of Megatron's optimizer that keeps part of its state on the host run without a GPU. For
a process of its own: it changes what torch's tensors say of themselves.
"""

from __future__ import annotations

import os

from qwen3vl_core.model import kernels

import torch


def pretend() -> None:
    """Distinguish host and device in this process."""
    import megatron.core.optimizer.optimizer_config as optimizer_config

    kind = torch.Tensor
    original = {name: getattr(kind, name) for name in ("clone", "detach", "float", "pin_memory", "to")}

    def on_host(tensor: torch.Tensor) -> torch.Tensor:
        tensor._on_host = True  # type: ignore[attr-defined]
        return tensor

    def stays(self: torch.Tensor) -> bool:
        return getattr(self, "_on_host", False)

    def keep(name: str):
        def kept(self, *args, **kwargs):
            made = original[name](self, *args, **kwargs)
            return on_host(made) if made is not self and stays(self) else made

        return kept

    def to(self, *args, **kwargs):
        made, where = original["to"](self, *args, **kwargs), str(args[0] if args else kwargs.get("device"))
        if where == "cpu":
            return on_host(original["detach"](made) if made is self else made)
        return on_host(made) if stays(self) and not where.startswith("cuda") else made

    for name in ("clone", "detach", "float", "pin_memory"):
        setattr(kind, name, keep(name))
    kind.is_cuda = property(lambda self: not stays(self))
    kind.cpu = lambda self, *args, **kwargs: self if stays(self) else on_host(original["detach"](self))
    kind.to = to
    torch.cuda.get_device_capability = lambda *args: (8, 0)
    optimizer_config.is_te_min_version = lambda *args, **kwargs: True
    # Triton, where it is installed, would look for the GPU's driver
    os.environ[kernels.SWITCH] = "none"


def offloaded(folder, checkpoints, changes: dict):
    """(losses of a plain run, those of an offloaded one; figures of steps 3 and 4 of one that went on, and of one resumed)."""
    from tests.training import trainings

    pretend()
    plain = [r[0] for r in trainings.train(folder, steps=3, precision="bf16", micro_batch_size=4)]
    moved = [r[0] for r in trainings.train(folder, steps=3, **changes)]
    went_on = trainings.train_in_two_halves(folder, checkpoints, changes, steps=2)
    return plain, moved, went_on, trainings.train_in_two_halves(folder, checkpoints, changes, changes, steps=2)
