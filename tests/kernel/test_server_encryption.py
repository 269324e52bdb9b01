"""A volume under a customer's key, in SeaweedFS: written and read by mounts, and by nobody else."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import botocore.exceptions
import pytest
import yaml

from s3fs_banyan.errors import ExitCode
from tests.kernel.background import Background
from tests.kernel.mounts import Mount, Volume, s3_volume
from tests.servers import SeaweedServer

KEY = bytes(range(7, 39))
OTHER = base64.b64encode(bytes(range(32))).decode()
_PREVIEW = b"the quick brown fox"


@pytest.fixture
def encrypted(seaweed: SeaweedServer, tmp_path: Path) -> Volume:
    """A new volume whose key is in a file."""
    key_file = tmp_path / "key"
    key_file.write_bytes(KEY)
    return s3_volume(seaweed, tmp_path, encryption={"type": "sse-c", "key_file": str(key_file)})


@pytest.fixture
def command(encrypted: Volume) -> Iterator[Background]:
    """The command on that volume; mounts are gone after the test."""
    made = Background(encrypted)
    yield made
    made.close()


def _objects(server: SeaweedServer, volume: Volume) -> list[tuple[str, int, object]]:
    bucket, _, prefix = volume.url.removeprefix("s3://").partition("/")
    client = server.client()
    found = client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/").get("Contents", [])
    client.close()
    return [(one["Key"], one["Size"], one["LastModified"]) for one in found]


def _everything_said(mount: Mount, command: Background) -> bytes:
    """What the log, the status and the process list show of a running mount."""
    said = mount.log.read_bytes() + command.run("status", str(mount.path), "--json").stdout.encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
            if b"s3fs_banyan" in line:
                said += line + (process / "environ").read_bytes()
        except OSError:  # it ended meanwhile
            continue
    return said


def test_a_volume_under_a_customers_key(
    seaweed: SeaweedServer, encrypted: Volume, command: Background
) -> None:
    """Written through the daemon and its worker, read from an empty disk, closed to others."""
    large, small = os.urandom(12 << 20), _PREVIEW * 3
    with Mount(encrypted, "one") as mount:
        mount.start()
        (mount.path / "large").write_bytes(large)
        (mount.path / "small").write_bytes(small)
        assert base64.b64encode(KEY) not in _everything_said(mount, command)
        mount.umount()
    encrypted.check()
    with Mount(encrypted, "two") as mount:
        mount.start()
        assert (mount.path / "large").read_bytes() == large
        assert (mount.path / "small").read_bytes() == small
        mount.umount()
    found = _objects(seaweed, encrypted)
    assert any("/pack/" in key for key, _, _ in found), "the worker has sent packs"
    bucket = encrypted.url.removeprefix("s3://").partition("/")[0]
    client = seaweed.client()
    for key, _, _ in found:
        with pytest.raises(botocore.exceptions.ClientError, match="customer key"):
            client.get_object(Bucket=bucket, Key=key)
    client.close()


def test_a_wrong_key_is_one_line_and_nothing_changes(
    seaweed: SeaweedServer, encrypted: Volume, command: Background
) -> None:
    """Exit code 3, as for wrong credentials; no local directory is begun."""
    before = _objects(seaweed, encrypted)
    place, cache = command.place("mnt"), encrypted.directory / "fresh-cache"
    mount = ["mount", encrypted.url, str(place), "--cache-dir", str(cache)]
    other, none = {"type": "sse-c", "key": OTHER}, dict[str, str]()
    for section, words in (
        (other, mount),
        (none, mount),
        (other, [*mount, "--read-only"]),
        (other, ["check", encrypted.url]),
    ):
        config = yaml.safe_load(command.config.read_text(encoding="utf-8"))
        config["storage"]["remote"]["encryption"] = section
        command.config.write_text(yaml.safe_dump(config), encoding="utf-8")
        done = command.run(*words, "--config", str(command.config))
        assert done.returncode == ExitCode.STORE, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("s3fs-banyan: ")
        assert "storage.remote.encryption" in line
        assert OTHER not in line
        assert _objects(seaweed, encrypted) == before
        assert not cache.exists()
