"""For every test: one thread a process, set before torch is imported, since two tests run side by side."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
