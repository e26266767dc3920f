"""`python -m prune_cli` is `prune-cli`."""

import sys

from prune_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
