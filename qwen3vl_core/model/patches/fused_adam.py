"""AdamW for a CPU with the interface and the state of Transformer Engine's FusedAdam.

The step count is stored per parameter group, not per parameter, so checkpoints have the same layout as those written on a
GPU, and runs can resume from either.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import ParamsT


class FusedAdam(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019); L2 regularisation if `adam_w_mode` is False."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_w_mode: bool = True,
        weight_decay: float = 0.0,
        **unused: Any,
    ) -> None:
        defaults = dict(lr=lr, bias_correction=bias_correction, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, defaults)
        self.adam_w_mode = adam_w_mode

    def _gradients(self, parameters: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Parameters that have a gradient, and their gradients in fp32. Megatron may keep them in `decoupled_grad`."""
        with_gradient, gradients = [], []
        for parameter in parameters:
            gradient = getattr(parameter, "decoupled_grad", None)
            gradient = parameter.grad if gradient is None else gradient
            if gradient is not None:
                with_gradient.append(parameter)
                gradients.append(gradient.float())
        return with_gradient, gradients

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # as Transformer Engine's: Megatron gives no closure
        """One update of every parameter that has a gradient, all tensors of a group at once."""
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = step = group.get("step", 0) + 1
            parameters, gradients = self._gradients(group["params"])
            if not parameters:
                continue
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.float32)
                    state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.float32)
            first = [self.state[p]["exp_avg"] for p in parameters]
            second = [self.state[p]["exp_avg_sq"] for p in parameters]
            beta1, beta2 = group["betas"]
            if self.adam_w_mode:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            elif group["weight_decay"]:
                gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
            torch._foreach_lerp_(first, gradients, 1 - beta1)
            torch._foreach_mul_(second, beta2)
            torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
            correction1 = 1 - beta1**step if group["bias_correction"] else 1.0
            correction2 = 1 - beta2**step if group["bias_correction"] else 1.0
            denominators = torch._foreach_sqrt(second)
            torch._foreach_div_(denominators, correction2**0.5)
            torch._foreach_add_(denominators, group["eps"])
            torch._foreach_addcdiv_(parameters, first, denominators, -group["lr"] / correction1)
