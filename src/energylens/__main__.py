"""``python -m energylens``."""

import sys

from energylens.cli import main

if __name__ == "__main__":
    sys.exit(main())
