"""The entry point: what an interruption means before the command itself is there.

The imports take most of a short command's time, and Ctrl-C during them must end as quietly as
later. So this module imports nothing but what Python has loaded anyway.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType

_STANDARD_ERROR = 2
_INTERRUPTED = 130
_SAID = "s3fs-banyan: interrupted\n"


def main() -> None:
    """Run the command; the process ends with a code of `errors.ExitCode`, or 130."""
    # Whoever ignores SIGINT (nohup, a shell's background job) goes on ignoring it.
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, _end_at_once)
    gc.disable()  # an import makes nothing but what stays
    from s3fs_banyan.cli.command import run_command

    gc.enable()

    try:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = run_command(sys.argv[1:])
    except KeyboardInterrupt:  # between two guarded parts
        sys.stderr.write(_SAID)
        code = _INTERRUPTED
    sys.exit(code)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """Say it and end: nothing is open yet, and half an import is nothing to unwind."""
    os.write(_STANDARD_ERROR, _SAID.encode())
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
