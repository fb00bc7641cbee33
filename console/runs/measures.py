"""What the metrics of a run are called on screens and in notebooks."""

METRICS = {
    "loss": "loss", "grad_norm": "gradient norm", "lr": "learning rate", "tokens_per_second": "trained tokens/s",
    "step_seconds": "seconds a step", "tokens": "trained tokens a step", "samples": "samples a step", "skipped": "samples skipped",
    "mfu": "MFU", "gpu_utilisation": "GPU busy, percent", "memory_gib": "GPU memory, GiB",
}  # fmt: skip
"""Metrics in the order in which they are offered, with their titles; others follow under their own names."""
NOISY = ("loss", "grad_norm", "tokens_per_second", "step_seconds")
"""Metrics that smoothing makes clearer; an average of a schedule would only lag behind it."""


def title_of(metric: str) -> str:
    """`gradient norm` for `grad_norm`; an unknown one's own name in words."""
    return METRICS.get(metric, metric.replace("_", " "))
