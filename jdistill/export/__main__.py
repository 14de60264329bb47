"""``python -m jdistill.export``, the old form of ``jdistill export``."""

import sys

from jdistill.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
