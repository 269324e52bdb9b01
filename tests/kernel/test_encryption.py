"""An encrypted volume from mkfs to a new machine: nothing readable in store or cache.

The search is proven by a plain volume with the same files in it, where it finds them all.
"""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import snappy

from s3fs_banyan.errors import ExitCode
from tests.kernel.background import Background
from tests.kernel.conftest import MakeMount
from tests.kernel.mounts import PROGRAM, Mount, Settings, Volume, file_volume
from tests.servers import SeaweedServer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PASSPHRASE = "a passphrase that no log may hold"
CONTENT = b"readable content of a file, again and again. "
LITTLE = b"readable little file"
TEXTS = {
    "content": CONTENT.strip(),
    "little content": LITTLE,
    "name": b"readable-file-name",
    "directory": b"readable-directory",
    "link": b"readable-link-target",
    "xattr name": b"user.readable-attribute",
    "xattr value": b"readable-value",
}
HISTORY: Settings = {"reclaim": {"window": 0, "hourly": 0, "every": "1s", "grace": 0}}
"""With this a checkpoint is written within seconds."""


def write_files(top: Path) -> None:
    """Write every text into the place that it is named for; large data, too, for a pack."""
    inner = top / "readable-directory"
    inner.mkdir()
    file = inner / "readable-file-name"
    file.write_bytes(CONTENT * 3000)
    (inner / "little").write_bytes(LITTLE)
    # So much that a part of it goes into a pack, wherever a cut divides it.
    (inner / "noise").write_bytes(os.urandom(16 << 20) + CONTENT * 2000)
    os.setxattr(file, "user.readable-attribute", b"readable-value")
    (inner / "link").symlink_to("readable-link-target")


def check_files(top: Path) -> None:
    """Everything is there as it was written."""
    inner = top / "readable-directory"
    file = inner / "readable-file-name"
    assert file.read_bytes() == CONTENT * 3000
    assert (inner / "little").read_bytes() == LITTLE
    assert (inner / "noise").read_bytes().endswith(CONTENT * 2000)
    assert os.getxattr(file, "user.readable-attribute") == b"readable-value"
    assert (inner / "link").readlink() == Path("readable-link-target")


def live(mount: Mount, checkpoint_there: Callable[[], bool]) -> None:
    """One life that leaves every kind of object: packs, inline chunks, deltas, a checkpoint."""
    mount.start()
    write_files(mount.path)
    mount.wait_until(checkpoint_there, 60.0, "no checkpoint was written")
    check_files(mount.path)
    mount.umount()


def readings(data: bytes) -> Iterator[bytes]:
    """Give the bytes as they are, and all that Snappy makes of parts that could be its own.

    Those are what the headers of chunks and blobs delimit, with and without a salt in front.
    """
    yield data
    for magic, head in (
        (b"BYNC", struct.Struct("<4sBBHQI")),
        (b"BYNB", struct.Struct("<4sBBHQQQ")),
    ):
        at = data.find(magic)
        while at >= 0 and at + head.size <= len(data):
            body = at + head.size
            if magic == b"BYNB":
                yield from _unpacked(data[body : body + head.unpack_from(data, at)[5]])
            else:
                count = head.unpack_from(data, at)[3]
                rows = [struct.unpack_from("<I", data, body + 16 * n)[0] for n in range(count)]
                offset = body + 16 * count + 8
                for length in rows:
                    yield from _unpacked(data[offset : offset + length])
                    offset += length
            at = data.find(magic, at + 4)


def _unpacked(part: bytes) -> Iterator[bytes]:
    for start, end in ((0, None), (16, -16), (12, -16), (16, None)):
        with contextlib.suppress(Exception):  # whatever is not Snappy's
            yield snappy.uncompress(part[start:end])


def found_in(objects: dict[str, bytes]) -> set[str]:
    """Return which of the texts can be read somewhere."""
    found: set[str] = set()
    for name, data in objects.items():
        for reading in readings(data):
            found |= {what for what, text in TEXTS.items() if text in reading}
        found |= {what for what, text in TEXTS.items() if text in os.fsencode(name)}
    return found


def files_below(directory: Path) -> dict[str, bytes]:
    """Return every file below a directory."""
    return {str(p): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def keys_of(client: S3Client, volume: Volume) -> list[str]:
    """Return the key of every object of a volume in SeaweedFS."""
    bucket, prefix = volume.url.removeprefix("s3://").split("/", 1)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [one["Key"] for page in pages for one in page.get("Contents", [])]


def objects_of(client: S3Client, volume: Volume) -> dict[str, bytes]:
    """Return every object of a volume in SeaweedFS."""
    bucket = volume.url.removeprefix("s3://").split("/", 1)[0]
    return {
        key: client.get_object(Bucket=bucket, Key=key)["Body"].read()
        for key in keys_of(client, volume)
    }


def test_the_search_finds_everything_in_a_plain_volume(
    tmp_path: Path, make_mount: MakeMount
) -> None:
    """Without this the test below could pass by being blind."""
    volume = file_volume(tmp_path, HISTORY)
    store = Path(volume.url.removeprefix("file://"))
    mount = make_mount(volume)
    live(mount, lambda: any(store.rglob("checkpoint+/piece+/*")))
    assert found_in(files_below(store)) == set(TEXTS)
    assert "content" in found_in(files_below(mount.cache_dir / "blocks"))


def test_nothing_of_an_encrypted_volume_is_readable(
    seaweed: SeaweedServer, make_s3_volume: Callable[..., Volume], make_mount: MakeMount
) -> None:
    """Store and block cache; then a new machine reads it all with the key, and none without."""
    volume = make_s3_volume(
        {"encryption": {"passphrase": "${PHRASE:-" + PASSPHRASE + "}"}, **HISTORY}
    )
    mount = make_mount(volume)
    client = seaweed.client()
    live(mount, lambda: any("/checkpoint/piece/" in key for key in keys_of(client, volume)))
    objects = objects_of(client, volume)
    client.close()
    kinds = {key.split("/")[1] for key in objects}
    assert kinds >= {"volume.json", "key", "log", "pack", "checkpoint"}
    assert found_in(objects) == set()
    blocks = files_below(mount.cache_dir / "blocks")
    assert sum(map(len, blocks.values())) > 6 << 20
    assert found_in(blocks) == set()
    assert PASSPHRASE not in mount.log.read_text("utf-8")
    volume.check()
    other = make_mount(volume, "other").start()
    check_files(other.path)
    (other.path / "more").write_bytes(CONTENT)
    other.kill()
    other.start()
    assert (other.path / "more").read_bytes() == CONTENT
    other.umount()
    follower = make_mount(volume, "follower").start("--read-only")
    check_files(follower.path)
    follower.umount()


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Background]:
    """The command on a new encrypted volume in a directory, which `right` opens."""
    for name in ("right", "wrong", "new"):
        (tmp_path / name).write_bytes(name.encode() * 16)
    settings: Settings = {"encryption": {"key_file": str(tmp_path / "right")}}
    volume = file_volume(tmp_path, settings)
    made = Background(replace(volume, settings={}))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("words", "key", "why"),
    [
        (("mount", "{store}", "{place}"), "wrong", "does not open"),
        (("mount", "{store}", "{place}"), "", "is encrypted"),
        (("mount", "{store}", "{place}", "--read-only"), "wrong", "does not open"),
        (("check", "{store}"), "wrong", "does not open"),
        (("ls", "{store}"), "", "is encrypted"),
        (("explain", "{store}", "file"), "wrong", "does not open"),
        (("volume", "rekey", "{store}"), "", "is encrypted: give --passphrase-file"),
        (("volume", "rekey", "{store}", "--new-key-file", "{new}"), "wrong", "does not open"),
    ],
    ids=str,
)
def test_a_wrong_key_is_refused_and_changes_nothing(
    command: Background, words: tuple[str, ...], key: str, why: str
) -> None:
    """One line, its exit code, no local directory; the same without a key."""
    directory = command.volume.directory
    store = Path(command.volume.url.removeprefix("file://"))
    before = {name: Path(name).stat().st_mtime_ns for name in files_below(store)}
    place, new = command.place("mnt"), directory / "new"
    filled = [word.format(store=command.volume.url, place=place, new=new) for word in words]
    if words[0] == "mount":
        filled += ["--cache-dir", str(directory / "fresh-cache")]
    done = command.run(*filled, *(["--key-file", str(directory / key)] if key else []))
    assert done.returncode == ExitCode.KEY, done.stderr
    assert done.stderr.startswith("s3fs-banyan: ")
    assert len(done.stderr.splitlines()) == 1
    assert why in done.stderr
    assert {name: Path(name).stat().st_mtime_ns for name in files_below(store)} == before
    assert not (directory / "fresh-cache").exists()


def test_a_key_is_changed_under_a_living_mount(command: Background) -> None:
    """No data is written anew; the next start needs the new key, also from /etc/fstab."""
    directory, store = command.volume.directory, command.volume.url
    objects = Path(store.removeprefix("file://"))
    key = {name: ["--key-file", str(directory / name)] for name in ("right", "new")}
    place = command.mount("mnt", *key["right"])
    write_files(place)
    done = command.run("sync", str(place))
    assert done.returncode == 0, done.stderr
    explained = command.run("explain", store, "readable-directory/noise", *key["right"])
    assert explained.returncode == 0, explained.stderr
    before = files_below(objects)
    done = command.run(
        *("volume", "rekey", store, *key["right"], "--new-key-file", str(directory / "new"))
    )
    assert done.returncode == 0, done.stderr
    after = files_below(objects)
    assert {n for n in before if before[n] != after.get(n)} == {str(objects / "key+" / f"{1:020d}")}
    (place / "more").write_bytes(b"more")
    assert command.run("umount", str(place)).returncode == 0
    shutil.rmtree(directory / "cache")
    refused = command.try_mount(command.place("mnt"), *key["right"])
    assert refused.returncode == ExitCode.KEY
    place = command.mount("mnt", "-o", f"key-file={directory / 'new'}")
    check_files(place)
    assert (place / "more").read_bytes() == b"more"


def type_to(words: list[str], answers: list[str]) -> tuple[int, str]:
    """Run a command at a terminal, type an answer at each prompt; returns (exit code, shown)."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *PROGRAM, *words], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown, prompt, left = b"", b"", list(answers)
    with open(ours, "r+b", buffering=0) as terminal:  # noqa: PTH123  # a descriptor
        while True:
            try:
                data = terminal.read(4096)
            except OSError:  # the other end is closed: a terminal says EIO
                break
            if not data:
                break
            shown, prompt = shown + data, prompt + data
            # The space comes when the terminal listens; what was typed before it is dropped.
            if left and prompt.endswith(b": "):
                prompt = b""
                terminal.write(left.pop(0).encode() + b"\n")
    return process.wait(60), shown.decode()


def test_a_passphrase_is_typed_and_shown_nowhere(tmp_path: Path) -> None:
    """It reaches the daemon by a pipe: no argument, no variable, no file ever holds it."""
    store, typed = f"file://{tmp_path / 'store'}", "what a person types"
    code, shown = type_to(["mkfs", store, "--encrypt"], [typed, typed])
    assert code == 0, shown
    code, wrong = type_to(["ls", store], ["what nobody set"])
    assert code == ExitCode.KEY, wrong
    volume = Volume(url=store, directory=tmp_path)
    background = Background(volume)
    place = background.place("mnt")
    local = ["--cache-dir", str(tmp_path / "cache"), "--config", str(background.config)]
    try:
        code, mounted = type_to(["mount", store, str(place), *local], [typed])
        assert code == 0, mounted
        background.adopt(place)
        pid = background.status(place)["writer"]["pid"]
        process = Path("/proc") / str(pid)
        known = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        status = background.run("status", str(place), "--json").stdout
        assert '"encrypted": true' in status
        log = (tmp_path / "cache" / "log").read_text("utf-8")
        for text in (shown, wrong, mounted, status, log, known.decode(errors="replace")):
            assert typed not in text
        assert background.run("umount", str(place)).returncode == 0
    finally:
        background.close()
    assert not any(typed.encode() in data for data in files_below(tmp_path).values())
