"""`python -m diffac` is `diffac`."""

import sys

from diffac.cli import main

if __name__ == "__main__":
    sys.exit(main())
