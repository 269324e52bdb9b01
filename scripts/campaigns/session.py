"""What every campaign has: a server, a volume at default settings, a mount, a place for results.

Results are written as they come: one line an event to `OUT.log`, and at the end (also of a run
that failed) `OUT.json` and the summary `OUT.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from tests.chaos.client import ChaosProxy
from tests.kernel.load import Load
from tests.kernel.mounts import Mount, Settings, file_volume, s3_volume
from tests.servers import SeaweedServer, free_port


@dataclass(slots=True, kw_only=True)
class Check:
    """One number and its limit."""

    name: str
    found: float
    limit: float
    unit: str = ""

    @property
    def holds(self) -> bool:
        """Whether the number is within its limit."""
        return self.found <= self.limit


@dataclass(slots=True, kw_only=True)
class Results:
    """What a campaign found, and where it is written."""

    title: str
    out: Path
    checks: list[Check] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)
    events: list[dict[str, object]] = field(default_factory=list)
    failure: str = ""
    begun: float = field(default_factory=time.monotonic)

    def event(self, text: str, **values: object) -> None:
        """Write a line to the log and to standard output."""
        at_s = round(time.monotonic() - self.begun, 1)
        self.events.append({"at_s": at_s, "event": text, **values})
        line = f"{at_s:8.1f} s  {text}" + "".join(f"  {k}={v}" for k, v in values.items())
        print(line, flush=True)
        with self.out.with_suffix(".log").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def check(self, name: str, found: float, limit: float, unit: str = "") -> None:
        """Note a number that must be at most `limit`."""
        self.checks.append(Check(name=name, found=found, limit=limit, unit=unit))

    def finish(self) -> int:
        """Write everything; returns the exit code."""
        text = self._markdown()
        self.out.with_suffix(".md").write_text(text, encoding="utf-8")
        values = {
            "title": self.title,
            "kernel": platform.release(),
            "failure": self.failure,
            "facts": self.facts,
            "checks": [
                {"name": c.name, "found": c.found, "limit": c.limit, "holds": c.holds}
                for c in self.checks
            ],
            "events": self.events,
        }
        self.out.with_suffix(".json").write_text(json.dumps(values, indent=1), encoding="utf-8")
        print(text, flush=True)
        return int(bool(self.failure) or not all(check.holds for check in self.checks))

    def _markdown(self) -> str:
        lines = [f"# {self.title}", ""]
        lines += [f"* {name}: {value}" for name, value in self.facts.items()]
        if self.checks:
            lines += ["", "| what | found | at most | |", "| --- | --- | --- | --- |"]
        for check in self.checks:
            holds = "holds" if check.holds else "**exceeded**"
            found, limit = f"{check.found:g} {check.unit}", f"{check.limit:g} {check.unit}"
            lines.append(f"| {check.name} | {found.strip()} | {limit.strip()} | {holds} |")
        lines += ["", f"FAILED: {self.failure}" if self.failure else "No failure."]
        return "\n".join(lines) + "\n"


@dataclass(slots=True, kw_only=True)
class Session:
    """A server, a mount on it, and the load's directory."""

    server: SeaweedServer
    mount: Mount
    load: Load
    results: Results
    line: ChaosProxy | None = None
    """What lies between mount and server, if anything does."""

    @property
    def proxy(self) -> ChaosProxy:
        """The proxy of a session that has one."""
        if self.line is None:
            raise RuntimeError("this campaign has no proxy")
        return self.line


def options(description: str, **defaults: float | str) -> argparse.Namespace:
    """Read the command line: --out, --directory, and a value for each of `defaults`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="results, without suffix")
    parser.add_argument("--directory", type=Path, help="server's and mount's data (default: /tmp)")
    parser.add_argument(
        "--server-directory", type=Path, help="the server's data, for a store on another disk"
    )
    parser.add_argument(
        "--store-directory",
        type=Path,
        help="keep the volume in a directory there and start no server, for a store that takes"
        " nothing of this machine's processors (no campaign that stops its server)",
    )
    parser.add_argument(
        "--server-nice",
        type=int,
        default=0,
        help="the server's niceness, for a store whose processors are not the mount's",
    )
    parser.add_argument(
        "--server-processor",
        type=int,
        help="number of a processor that the server gets for itself; all else has the others",
    )
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


@contextmanager
def session(
    title: str,
    chosen: argparse.Namespace,
    *load_options: str,
    settings: Settings | None = None,
    remote: dict[str, object] | None = None,
    proxy: Callable[[SeaweedServer], ChaosProxy] | None = None,
) -> Iterator[Session]:
    """Run a campaign's body; what it raises becomes the failure of its results.

    `settings` and `remote` (of `storage.remote`) are laid over the defaults; with `proxy` the
    mount reaches the server through the one that it makes.
    """
    directory = Path(tempfile.mkdtemp(prefix="campaign-", dir=chosen.directory))
    results = Results(title=title, out=chosen.out)
    try:
        with ExitStack() as stack:
            server = _server(stack, chosen, directory, results)
            line = stack.enter_context(proxy(server)) if proxy else None
            if chosen.store_directory is None:
                url = line.endpoint_url if line else ""
                volume = s3_volume(server, directory, small=False, endpoint_url=url)
            else:
                volume = file_volume(_temporary(stack, chosen.store_directory), small=False)
                volume.directory = directory  # its store alone is to be elsewhere
            volume.settings |= settings or {}
            if remote:
                cast("dict[str, object]", volume.settings["storage"]["remote"]).update(remote)
            volume.settings["metrics"] = {"address": f"127.0.0.1:{free_port()}"}
            with Mount(volume) as mount:
                mount.start()
                results.event("mounted")
                log = directory / "oplog"
                load = Load(mount.path / "db", log, *load_options)
                try:
                    yield Session(server=server, mount=mount, load=load, results=results, line=line)
                except Exception as error:  # noqa: BLE001  # it is the result
                    results.failure = f"{type(error).__name__}: {error}"
                    if log.exists():
                        shutil.copy(log, results.out.with_suffix(".oplog"))
                finally:
                    load.close()
                    shutil.copy(mount.log, results.out.with_suffix(".daemon.log"))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _temporary(stack: ExitStack, parent: Path) -> Path:
    """Return a new directory under `parent`, removed at the end."""
    directory = tempfile.TemporaryDirectory(
        prefix="campaign-", dir=parent, ignore_cleanup_errors=True
    )
    return Path(stack.enter_context(directory))


def _server(
    stack: ExitStack, chosen: argparse.Namespace, directory: Path, results: Results
) -> SeaweedServer:
    """Return the server as it was asked for: running, unless the volume is in a directory."""
    if chosen.store_directory is not None:
        results.facts["the store"] = "a directory; no server on this machine"
        return SeaweedServer(directory / "server")
    place = directory / "server"
    if chosen.server_directory is not None:
        results.facts["the server's data"] = "not on the disk of the mount"
        place = _temporary(stack, chosen.server_directory)
    server = SeaweedServer(place)
    if chosen.server_nice:
        server.nice = chosen.server_nice
        results.facts["niceness of the server"] = server.nice
    with _processor_of_server(chosen.server_processor, results):
        stack.enter_context(server)
    return server


@contextmanager
def _processor_of_server(number: int | None, results: Results) -> Iterator[None]:
    """What is started meanwhile has this processor, what is started later has the others."""
    if number is None:
        yield
        return
    others = os.sched_getaffinity(0) - {number}
    os.sched_setaffinity(0, {number})
    yield
    os.sched_setaffinity(0, others)
    results.facts["processors of the server"] = f"{number}; all else has {sorted(others)}"
