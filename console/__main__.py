"""`python -m console`: the same as the installed `qwen3vl`."""

import sys

from console.commands import main

sys.exit(main())
