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
        master_weights: bool = False,
        exp_avg_dtype: torch.dtype = torch.float32,
        exp_avg_sq_dtype: torch.dtype = torch.float32,
        **unused: Any,
    ) -> None:
        """master_weights: keep an fp32 copy of every parameter as `master_param` of its state, which is updated instead. exp_avg_dtype,
        exp_avg_sq_dtype: fp32 or bf16, in which a moment is kept between updates; an update is computed in fp32."""
        defaults = dict(lr=lr, bias_correction=bias_correction, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, defaults)
        self.adam_w_mode, self.master_weights = adam_w_mode, master_weights
        self.exp_avg_dtype, self.exp_avg_sq_dtype = exp_avg_dtype, exp_avg_sq_dtype

    def initialize_state(self, param: torch.Tensor, store_param_remainders: bool = False) -> None:
        """Make the state of a parameter that has none."""
        state = self.state[param]
        state["exp_avg"] = torch.zeros_like(param, dtype=self.exp_avg_dtype)
        state["exp_avg_sq"] = torch.zeros_like(param, dtype=self.exp_avg_sq_dtype)
        if self.master_weights:
            state["master_param"] = param.detach().clone().float()

    def get_unscaled_state(self, param: torch.Tensor, state_name: str) -> torch.Tensor:
        """A tensor of a parameter's state in fp32; the tensor itself if it is."""
        return self.state[param][state_name].float()

    def set_scaled_state(self, param: torch.Tensor, state_name: str, unscaled_state: torch.Tensor) -> None:
        """Write an fp32 tensor into a parameter's state, in the precision of the state."""
        if not self.state[param]:
            self.initialize_state(param)
        self.state[param][state_name].copy_(unscaled_state)

    def load_state_dict(self, state_dict: Any) -> None:
        """As torch's, except that the state keeps its precision: torch casts it to that of the parameter."""
        super().load_state_dict(state_dict)
        names = [name for group in state_dict["param_groups"] for name in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for name, parameter in zip(names, parameters, strict=True):
            if name in state_dict["state"]:
                self.state[parameter] = {k: v for k, v in state_dict["state"][name].items() if v is not None}

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
                if not self.state[parameter]:
                    self.initialize_state(parameter)
            first = [self.get_unscaled_state(p, "exp_avg") for p in parameters]
            second = [self.get_unscaled_state(p, "exp_avg_sq") for p in parameters]
            masters = [self.get_unscaled_state(p, "master_param") for p in parameters] if self.master_weights else parameters
            beta1, beta2 = group["betas"]
            if self.adam_w_mode:
                torch._foreach_mul_(masters, 1 - group["lr"] * group["weight_decay"])
            elif group["weight_decay"]:
                gradients = list(torch._foreach_add(gradients, masters, alpha=group["weight_decay"]))
            torch._foreach_lerp_(first, gradients, 1 - beta1)
            torch._foreach_mul_(second, beta2)
            torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
            correction1 = 1 - beta1**step if group["bias_correction"] else 1.0
            correction2 = 1 - beta2**step if group["bias_correction"] else 1.0
            denominators = torch._foreach_sqrt(second)
            torch._foreach_div_(denominators, correction2**0.5)
            torch._foreach_add_(denominators, group["eps"])
            torch._foreach_addcdiv_(masters, first, denominators, -group["lr"] / correction1)
            for name, dtype, values in (("exp_avg", self.exp_avg_dtype, first), ("exp_avg_sq", self.exp_avg_sq_dtype, second)):
                if dtype != torch.float32:
                    torch._foreach_copy_([self.state[p][name] for p in parameters], values)
            if self.master_weights:
                torch._foreach_copy_(parameters, masters)
