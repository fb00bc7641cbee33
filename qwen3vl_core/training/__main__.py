"""`python -m qwen3vl_core.training RUN_DIR`: start or resume the run that RUN_DIR/plan.json describes.

One process, or under torchrun. Exit codes: 0 finished or stopped cleanly, 1 the run failed, 2 the request is invalid.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from pathlib import Path

from qwen3vl_core import log_lines
from qwen3vl_core.addresses import without_secrets
from qwen3vl_core.errors import EXIT_DONE, EXIT_FAILED, RequestError, WorkError, error_lines
from qwen3vl_core.files import disk_full
from qwen3vl_core.training.plan_loading import read_options
from qwen3vl_core.training.run_lock import end_forked_with_parent, end_with_parent


def main(arguments: list[str]) -> int:
    """Train. A RequestError is the same on all ranks and is printed by rank 0 only."""
    if len(arguments) != 1:
        print("usage: python -m qwen3vl_core.training RUN_DIR", file=sys.stderr)
        return RequestError.exit_code
    rank = int(os.environ.get("RANK", 0))
    try:
        end_with_parent()
        end_forked_with_parent()
        run_dir = Path(arguments[0])
        options = read_options(run_dir)

        # nothing that is imported is garbage: collecting takes a tenth of the import time, and as much again at every checkpoint,
        # where Megatron collects
        gc.disable()
        from qwen3vl_core.model import process_groups

        from qwen3vl_core.training.loop import Loop

        gc.freeze()
        gc.enable()
        process_groups.initialize(
            options.tp, options.pp, cp=options.cp, ep=options.ep, etp=options.etp, vp=options.vp, seed=options.seed,
            timeout_minutes=options.distributed_timeout_minutes,
        )  # fmt: skip
        Loop(run_dir, options).run()
        process_groups.destroy()
        return EXIT_DONE
    except (RequestError, WorkError) as error:
        if rank == 0 or isinstance(error, WorkError):
            for line in error_lines(error, in_a_run=True):
                print(line, file=sys.stderr, flush=True)
        return error.exit_code
    except Exception as error:
        if (full := disk_full(error)) is not None:
            line = f"{full.filename or arguments[0]}: the disk is full; free some space and resume the run"
            print(log_lines.written(line, log_lines.WORK_FAILED), file=sys.stderr, flush=True)
            return EXIT_FAILED
        # users look for the reason in the run's log
        print(without_secrets(traceback.format_exc()), file=sys.stderr, end="", flush=True)
        return EXIT_FAILED


if __name__ == "__main__":
    # do not wait for threads of process groups that other ranks have already left
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
