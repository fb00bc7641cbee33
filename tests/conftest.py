"""For all tests: one thread per process, set before torch is imported, because two tests run in parallel; long files first."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")):
    # Triton, which Megatron imports, reads it when it is imported; without it kernels could not be tested on a CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")
# whatever the locale: what the tests read is English
os.environ["QWEN3VL_LANG"] = "en"
# bytecode of the commands that tests start is cached, as for a user
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

with contextlib.suppress(ImportError):  # the tests on a GPU do without it
    from hypothesis import settings

    # the first example pays for imports, and machines are shared
    settings.register_profile("shared", deadline=None)
    settings.load_profile("shared")

# the longest files, longest first: a long file that starts last would leave a core idle
LONG = (
    "test_notebooks.py", "test_every_action.py", "test_run.py", "test_even_ranks.py", "test_launch_screen.py", "test_demo_loop_in_tmux.py",
    "test_a3b_benchmark.py", "test_compare_actions.py", "test_stacked_adapters.py", "test_readers.py", "test_safe_keys.py",
    "test_resume_elsewhere.py", "test_restarts.py", "test_gradients.py", "test_file_calls.py", "test_sample_captions.py", "test_resume.py",
    "test_layouts.py", "test_compare_command.py", "test_killed_runs.py", "test_terminals.py", "test_web.py", "test_demo_command.py",
    "test_monitor.py", "test_even_batches.py", "test_optimizer_precision.py", "test_launcher.py", "test_hostile_folders.py",
    "test_init_adapter.py", "test_convert.py", "test_layout_parameters.py", "test_saved_layouts.py", "test_clock_steps.py",
    "test_plans_start.py", "test_lora.py", "test_train_base.py", "test_snapshots.py", "test_welcome_screen.py", "test_experts.py",
    "test_download.py", "test_large_metrics.py", "test_vanished_nodes.py", "test_video.py", "test_mutations.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))
