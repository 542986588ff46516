"""The program `diffac`, also as `python -m diffac`."""

import os
import signal
import sys


def main() -> int:
    """Runs it; returns its exit code.

    Until the command line is imported, which takes seconds, Ctrl-C just ends the process: there is nothing to save, and
    libraries may take an exception in the middle of their imports for something else.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    from diffac.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
