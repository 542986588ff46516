"""The program `diffac`, also as `python -m diffac`."""

import sys

from diffac.system.early_signals import leave_at_once


def main() -> int:
    """Runs it; returns its exit code."""
    leave_at_once()
    from diffac.commands.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
