"""Real mounts for tests: a daemon of its own, that can be killed, stopped and mounted again.

A `Volume` is a store and a way to reach it; a `Mount` is one daemon on it. Whatever happens, the
mount point is free and the daemon gone when `Mount.close` returns, and its log is in the message
of every failure. Daemons are ended by pid.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from unittest import mock

import yaml

from s3fs_banyan.app.control import control_path
from s3fs_banyan.cli import command as program
from s3fs_banyan.kernel import mount_source
from s3fs_banyan.observe.log import ROOT as LOG_ROOT
from tests.servers import ObjectServer

READY_WITHIN_S = 60.0
END_WITHIN_S = 60.0
_LOG_SHOWN_BYTES = 6000

Settings = dict[str, dict[str, object]]

SMALL: Settings = {
    "commit": {"interval": "2s"},
    "journal": {"segment_size": "4MiB"},
    "cache": {"size": "256MiB", "ram_size": "16MiB", "dirty_max": "512MiB"},
}
"""Settings with which a mount starts fast and commits often."""


class MountError(Exception):
    """A daemon did not do what was asked; the message ends with the tail of its log."""


@dataclass(slots=True, kw_only=True)
class Volume:
    """A store with a volume in it, and the settings to reach it with."""

    url: str
    directory: Path
    """Where configuration files and logs go."""
    settings: Settings = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    small: bool = True
    """Whether `SMALL` is what the settings are laid over, or the program's own defaults."""

    def mkfs(self) -> Self:
        """Make the volume."""
        self._run_here("mkfs")
        return self

    def check(self) -> None:
        """The checker finds nothing wrong with any object of the volume."""
        self._run_here("check")

    def _run_here(self, command: str) -> None:
        """Run a command in this process: a new one works half a second before it begins.

        Raises `MountError` if it fails. Not for threads, as the environment is the process's.
        """
        words = [command, self.url, "--config", str(self.write_config(command))]
        said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="surrogateescape")
        log = logging.getLogger(LOG_ROOT)
        level = log.level
        log.setLevel(logging.CRITICAL + 1)  # as the command does: an error is said once
        try:
            with (
                mock.patch.dict(os.environ, self.environment),
                contextlib.redirect_stdout(said),
                contextlib.redirect_stderr(said),
            ):
                code = program.run(words)
        finally:
            log.setLevel(level)
        if code:
            said.seek(0)
            raise MountError(f"{command} ended with {code}: {said.read()}")

    def write_config(self, name: str, settings: Settings | None = None) -> Path:
        """Write a configuration file and return its path."""
        merged: Settings = {}
        for layer in (SMALL if self.small else {}, self.settings, settings or {}):
            for section, values in layer.items():
                merged.setdefault(section, {}).update(values)
        path = self.directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(merged), encoding="utf-8")
        return path


_BUCKETS: dict[str, str] = {}
"""Endpoint of a server -> the bucket that all volumes of this run share."""

PROGRAM = [sys.executable, "-m", "s3fs_banyan.cli.main"]


def file_volume(directory: Path, settings: Settings | None = None, *, small: bool = True) -> Volume:
    """Make a volume in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    url = f"file://{directory / 'store'}"
    return Volume(url=url, directory=directory, settings=settings or {}, small=small).mkfs()


def server_volume(
    server: ObjectServer,
    directory: Path,
    settings: Settings | None = None,
    *,
    endpoint_url: str = "",
    small: bool = True,
    encryption: dict[str, object] | None = None,
) -> Volume:
    """Make a volume of its own in a server's bucket, reached directly or through a proxy.

    `settings` may have a section `remote`, for keys of `storage.remote`.

    All share one bucket: SeaweedFS reserves several of its few data files for each.
    """
    directory.mkdir(parents=True, exist_ok=True)
    bucket = _BUCKETS.setdefault(server.endpoint_url, "") or server.bucket()
    _BUCKETS[server.endpoint_url] = bucket
    prefix = f"vol-{secrets.token_hex(6)}"
    url, place, environment = _reach(server, bucket, prefix)
    remote = {"prefix": prefix, "endpoint_url": endpoint_url or server.endpoint_url, **place}
    if encryption:
        remote["encryption"] = encryption
    if small:
        remote |= {"connect_timeout": "1s", "read_timeout": "3s", "retry_deadline": "3s"}
    settings = dict(settings or {})
    remote |= settings.pop("remote", {})
    return Volume(
        url=url,
        directory=directory,
        settings={"storage": {"remote": remote}, **settings},
        environment=environment,
        small=small,
    ).mkfs()


s3_volume = server_volume


def _reach(
    server: ObjectServer, bucket: str, prefix: str
) -> tuple[str, dict[str, object], dict[str, str]]:
    """Return (store URL, settings of the store, environment) for a server's kind."""
    if server.kind == "azure":
        place: dict[str, object] = {
            "type": "azure",
            "account": server.access_key,
            "container": bucket,
            "credentials": {"account_key": "${TEST_ACCOUNT_KEY}"},
        }
        url = f"az://{server.access_key}/{bucket}/{prefix}"
        return url, place, {"TEST_ACCOUNT_KEY": server.secret_key}
    if server.kind == "gcs":
        return f"gs://{bucket}/{prefix}", {"type": "gcs", "bucket": bucket}, {}
    place = {
        "type": "s3",
        "bucket": bucket,
        "region": "us-east-1",
        "credentials": {
            "access_key": "${AWS_ACCESS_KEY_ID}",
            "secret_key": "${AWS_SECRET_ACCESS_KEY}",
        },
    }
    environment = {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
    }
    return f"s3://{bucket}/{prefix}", place, environment


class Mount:
    """One daemon of a volume, mounted. Use as a context manager, or call `close`."""

    def __init__(
        self,
        volume: Volume,
        name: str = "mount",
        *,
        cache_dir: Path | None = None,
        settings: Settings | None = None,
    ) -> None:
        """Choose directories; nothing is started before `start`."""
        self.volume = volume
        self.name = name
        self.path = volume.directory / f"{name}.mnt"
        self.cache_dir = cache_dir or volume.directory / f"{name}.cache"
        self.log = volume.directory / f"{name}.log"
        self.settings = settings or {}
        self._process: subprocess.Popen[bytes] | None = None

    # --- life ----------------------------------------------------------------------------

    def start(self, *arguments: str, failpoint: str = "", ready: bool = True) -> Self:
        """Mount; returns when it answers (with `ready`). Raises `MountError` if it does not."""
        self._detach()
        self.path.mkdir(exist_ok=True)
        config = self.volume.write_config(self.name, self.settings)
        command = [*PROGRAM, "mount", self.volume.url, str(self.path), "--foreground"]
        command += ["--config", str(config), "--cache-dir", str(self.cache_dir), *arguments]
        if failpoint:
            command += ["--failpoint", failpoint]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self.volume.environment,
                start_new_session=True,  # as a mount in the background has
            )
        if ready:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Wait until the mount answers a statfs."""

        def answers() -> bool:
            if self.process.poll() is not None:
                raise self.error(f"the daemon ended with {self.process.returncode}")
            if mount_source(self.path) is None:
                return False
            return _touch(self.path)

        self.wait_until(answers, READY_WITHIN_S, "the mount did not answer")

    def umount(self) -> None:
        """Unmount and wait until everything is in the store and the daemon has ended."""
        subprocess.run(["umount", str(self.path)], check=True, timeout=30)
        self.wait_end(0)

    def wait_end(self, code: int | None = None) -> int:
        """Wait until the daemon ends by itself; returns its exit code."""
        try:
            found = self.process.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired as error:
            raise self.error("the daemon did not end") from error
        self._process = None
        self._detach()
        if code is not None and found != code:
            raise self.error(f"the daemon ended with {found}, not {code}")
        return found

    def kill(self) -> None:
        """kill -9 of the daemon. The dead mount stays until the next start: ENOTCONN for all."""
        self.process.kill()
        self.process.wait()
        self._process = None

    def stop(self) -> None:
        """SIGSTOP: the machine sleeps."""
        self.process.send_signal(signal.SIGSTOP)

    def cont(self) -> None:
        """SIGCONT: the machine wakes."""
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Leave nothing behind, in whatever state the daemon is."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        self._detach()

    def _detach(self) -> None:
        while mount_source(self.path) is not None:
            subprocess.run(["umount", "-l", str(self.path)], check=True, timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- questions -----------------------------------------------------------------------

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running daemon."""
        if self._process is None:
            raise self.error("the daemon is not running")
        return self._process

    @property
    def alive(self) -> bool:
        """Whether the daemon runs."""
        return self._process is not None and self._process.poll() is None

    def ask(self, command: str, timeout_s: float = END_WITHIN_S) -> dict[str, object]:
        """Send a command to the control socket; return its result. Raises `MountError`."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            try:
                connection.connect(str(control_path(self.path)))
                connection.sendall(json.dumps({"command": command}).encode() + b"\n")
                for line in connection.makefile("rb"):
                    message = json.loads(line)
                    if "result" in message:
                        return dict(message["result"])
                    if "error" in message:
                        raise self.error(f"{command}: {message['error']}")
            except OSError as error:
                raise self.error(f"{command}: {error}") from error
        raise self.error(f"{command}: the daemon ended")

    def sync(self) -> None:
        """Bring everything into the store, as the `sync` command does."""
        self.ask("sync")

    def status(self) -> dict[str, object]:
        """Return what `status` tells."""
        return self.ask("status")

    def number(self, section: str, name: str) -> float:
        """Return one number of a section of `status`."""
        values = self.status()[section]
        assert isinstance(values, dict)
        return float(values[name])

    def wait_until(self, happened: Callable[[], bool], within_s: float, what: str) -> None:
        """Poll until something happened; raises `MountError` when time is up."""
        deadline = time.monotonic() + within_s
        while not happened():
            if time.monotonic() > deadline:
                raise self.error(f"{what} within {within_s:.0f} s")
            time.sleep(0.02)

    def log_text(self) -> str:
        """Return everything that the daemons of this mount have logged."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def error(self, text: str) -> MountError:
        """Return an error with the tail of the daemon's log."""
        return MountError(
            f"{self.name}: {text}\n--- its log:\n{self.log_text()[-_LOG_SHOWN_BYTES:]}"
        )

    def wipe_cache(self) -> None:
        """Remove the whole local directory: the machine is lost."""
        shutil.rmtree(self.cache_dir)


def _touch(path: Path) -> bool:
    """Ask the file system something, in a process that may be killed if nobody answers."""
    try:
        done = subprocess.run(
            ["stat", "-f", str(path)], capture_output=True, timeout=5, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
