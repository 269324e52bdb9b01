"""The side of the tests and campaigns: starts the proxy, sends it commands, reads its counts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from tests.chaos.script import Blackout, Mode


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the proxy has counted so far."""

    at_s: float
    weather: str
    injected: dict[str, int]
    """Kind of fault -> how often."""
    missing: list[str]
    """Kinds that were never injected."""
    by_target: dict[str, int]
    """`KIND METHOD CATEGORY` -> how often."""
    traffic: dict[str, dict[str, int]]
    """`METHOD CATEGORY` -> `requests`, `sent_bytes` and `received_bytes` of bodies."""

    def total(self, count: str, method: str, *categories: str) -> int:
        """Return a sum over some categories, or over all."""
        return sum(
            counts.get(count, 0)
            for line, counts in self.traffic.items()
            if line.split(" ")[0] == method and (not categories or line.split(" ")[1] in categories)
        )


class ChaosProxy:
    """A running proxy. Nothing goes wrong before `begin`."""

    def __init__(
        self,
        upstream: str,
        *,
        seed: int = 1,
        duration_s: float = 3600.0,
        blackouts: Sequence[Blackout] = (),
        weather: str = "",
        log: Path | None = None,
    ) -> None:
        """`upstream` is the endpoint of the server behind it; `log` gets a line a fault.

        `weather` is the only one of the run, if it is given.
        """
        self.endpoint_url = ""
        self._command = [sys.executable, "-m", "tests.chaos.proxy", upstream]
        self._command += ["--seed", str(seed), "--duration", str(duration_s)]
        for blackout in blackouts:
            self._command += ["--blackout"]
            self._command += [f"{blackout.start_s}:{blackout.length_s}:{blackout.kind}"]
        if weather:
            self._command += ["--weather", weather]
        if log is not None:
            self._command += ["--log", str(log.resolve())]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdout is not None
        self.endpoint_url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process is not None
        self._process.communicate()

    def begin(self) -> None:
        """Start the script, or start it again from its beginning."""
        self._ask("begin")

    def calm(self) -> None:
        """End all faults; what hangs is cut."""
        self._ask("calm")

    def only(self, kind: str) -> None:
        """Give one kind to every request that it fits; none with an empty name."""
        self._ask(f"only {kind}".strip())

    def set_mode(self, mode: Mode) -> None:
        """Open, refuse or black-hole the line, by hand; in effect on return."""
        self._ask(f"mode {mode}")

    def report(self) -> Report:
        """Return what was counted so far."""
        values = self._ask("report")
        return Report(**{field.name: values[field.name] for field in fields(Report)})

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer
