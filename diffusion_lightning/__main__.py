"""The `lightning` command's entry: it answers at once what needs no library, and Ctrl-C while they load."""

import os
import signal
import sys

from diffusion_lightning.commands.manual import USAGE, version_line


def main() -> None:
    """Run the `lightning` command with this process's command line."""
    given = sys.argv[1:]
    if not given or given[0] in ("-h", "--help"):
        print(USAGE, end="")
        sys.exit(0 if given else 2)
    if given[0] == "--version":
        print(version_line())
        return
    former = signal.getsignal(signal.SIGINT)
    if former is signal.default_int_handler:
        # not as an exception, which may be raised within any of the libraries and be taken for a failure of theirs
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    from diffusion_lightning.commands.cli import main as run

    signal.signal(signal.SIGINT, former)
    run()


if __name__ == "__main__":
    main()
