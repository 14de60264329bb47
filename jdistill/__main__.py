"""``python -m jdistill COMMAND``, and what the script ``jdistill`` runs."""

from __future__ import annotations

import sys

from jdistill.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
