"""Finds the environment of the checkout."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv"


def use_environment(script: str) -> None:
    """Go on in the checkout's environment if this Python has not what is needed."""
    if find_spec("pyfuse3") is None and Path(sys.prefix) != ENVIRONMENT:
        python = ENVIRONMENT / "bin" / "python"
        if not python.exists():
            sys.exit("campaign: pyfuse3 is missing; scripts/test makes an environment that has it")
        os.execv(python, [str(python), script, *sys.argv[1:]])  # noqa: S606 (no shell is wanted)
