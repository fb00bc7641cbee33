"""`python -m console`: what the installed `qwen3vl` does."""

import sys

from console.commands import main

sys.exit(main())
