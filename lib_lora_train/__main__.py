"""`python -m lib_lora_train`: the command line."""

from __future__ import annotations

import sys

from lib_lora_train.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
