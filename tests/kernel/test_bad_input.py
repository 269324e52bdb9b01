"""Bad input: one clear line, the documented exit code, and nothing in the store changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from s3fs_banyan.errors import ExitCode
from s3fs_banyan.format.sealed_json import open_json, seal_json
from tests.kernel.background import Background
from tests.kernel.mounts import PROGRAM, Volume
from tests.servers import SeaweedServer


@pytest.fixture
def in_s3(make_s3_volume: Callable[..., Volume]) -> Iterator[Background]:
    """The command on a new volume in SeaweedFS."""
    made = Background(make_s3_volume())
    yield made
    made.close()


def _objects(command: Background) -> dict[str, tuple[int, bytes]]:
    """Every object of a store in a directory, its time included.

    Of the note that a living writer renews every half minute, only whose it is.
    """
    root = Path(command.volume.url.removeprefix("file://"))
    files = [path for path in root.rglob("*") if path.is_file()]
    found = {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    note = str(root / "writer")
    if note in found:
        found[note] = (0, json.loads(found[note][1])["writer"].encode())
    return found


def _s3_objects(server: SeaweedServer, bucket: str) -> list[tuple[object, ...]]:
    client = server.client()
    found = client.list_objects_v2(Bucket=bucket).get("Contents", [])
    client.close()
    return [(one["Key"], one["Size"], one["LastModified"], one["ETag"]) for one in found]


def _refused(done: subprocess.CompletedProcess[str], code: ExitCode, *words: str) -> None:
    """The command said one line with these words in it, and ended with this code."""
    assert done.returncode == code, (done.returncode, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("s3fs-banyan: ")
    for word in words:
        assert word in lines[0]


_EVERY_COMMAND = (
    ("mount", "{store}", "{place}"),
    ("mount", "{store}", "{place}", "--read-only"),
    ("check", "{store}"),
    ("ls", "{store}"),
    ("cat", "{store}", "file"),
    ("cp", "{store}", "file", "{place}/out"),
    ("tree", "{store}"),
)


def _words(command: Background, words: tuple[str, ...], store: str) -> list[str]:
    """Fill a command line in, with a local directory of its own where one is needed."""
    filled = [word.format(store=store, place=command.place("mnt")) for word in words]
    if words[0] == "mount":
        filled += ["--cache-dir", str(command.volume.directory / "fresh-cache")]
    return filled


@pytest.mark.parametrize("words", _EVERY_COMMAND, ids=" ".join)
def test_a_directory_that_does_not_exist(command: Background, words: tuple[str, ...]) -> None:
    """A disk that is not mounted must not look like an empty volume."""
    missing = command.volume.directory / "missing"
    done = command.run(*_words(command, words, missing.as_uri()))
    _refused(done, ExitCode.STORE, str(missing), "no such directory")
    assert not missing.exists()
    assert not (command.volume.directory / "fresh-cache").exists()


@pytest.mark.parametrize("words", _EVERY_COMMAND, ids=" ".join)
def test_an_empty_directory_is_no_volume(command: Background, words: tuple[str, ...]) -> None:
    """The line says how a volume is made."""
    empty = command.volume.directory / "empty"
    empty.mkdir()
    done = command.run(*_words(command, words, empty.as_uri()))
    _refused(done, ExitCode.VOLUME, "mkfs")
    assert not (command.volume.directory / "fresh-cache").exists()


@pytest.mark.parametrize("words", [("mkfs", "{store}"), *_EVERY_COMMAND], ids=" ".join)
def test_a_prefix_that_holds_something_else(command: Background, words: tuple[str, ...]) -> None:
    """Somebody's backup must not get a volume into it, nor be taken for one."""
    other = command.volume.directory / "other"
    other.mkdir()
    (other / "holiday.jpg").write_bytes(b"a picture")
    done = command.run(*_words(command, words, other.as_uri()))
    _refused(done, ExitCode.VOLUME, "holiday.jpg")
    assert [path.name for path in other.iterdir()] == ["holiday.jpg"]


def test_mkfs_on_a_volume(command: Background) -> None:
    """A volume is never made anew over one that is there."""
    place = command.mount()
    (place / "file").write_bytes(b"1")
    assert command.run("umount", str(place)).returncode == 0
    before = _objects(command)
    done = command.run("mkfs", command.volume.url)
    _refused(done, ExitCode.VOLUME, "holds a volume already")
    assert _objects(command) == before


@pytest.mark.parametrize("words", _EVERY_COMMAND, ids=" ".join)
def test_a_volume_of_a_newer_format(command: Background, words: tuple[str, ...]) -> None:
    """An older release must not guess at what it does not know."""
    path = Path(command.volume.url.removeprefix("file://")) / "volume.json"
    body = open_json(path.read_bytes(), "volume", 1, "volume.json")
    path.write_bytes(seal_json({**body, "version": 2}))
    before = _objects(command)
    done = command.run(*_words(command, words, command.volume.url))
    _refused(done, ExitCode.FORMAT, "version 2", "newer s3fs-banyan")
    assert _objects(command) == before


@pytest.mark.parametrize("words", _EVERY_COMMAND, ids=" ".join)
def test_a_damaged_descriptor(command: Background, words: tuple[str, ...]) -> None:
    """Damage is called damage, by the name of the object."""
    path = Path(command.volume.url.removeprefix("file://")) / "volume.json"
    path.write_bytes(path.read_bytes().replace(b"pack_bytes", b"pack_bytez"))
    done = command.run(*_words(command, words, command.volume.url))
    _refused(done, ExitCode.DAMAGE, "volume.json")


def test_wrong_credentials(in_s3: Background, seaweed: SeaweedServer) -> None:
    """The line says what to look at, and never the key."""
    bucket = in_s3.volume.url.split("/")[2]
    before = _s3_objects(seaweed, bucket)
    config = ["--config", str(in_s3.config)]
    secret = "wrong-secret-key-0123456789"
    for words in [("mkfs", "{store}"), *_EVERY_COMMAND]:
        filled = _words(in_s3, words, in_s3.volume.url) + config
        done = in_s3.run(*filled, AWS_SECRET_ACCESS_KEY=secret)
        _refused(done, ExitCode.STORE)
        assert secret not in done.stderr + done.stdout
        assert "key" in done.stderr or "credentials" in done.stderr
    assert _s3_objects(seaweed, bucket) == before
    assert not (in_s3.volume.directory / "fresh-cache").exists()


def test_a_bucket_that_does_not_exist(in_s3: Background, seaweed: SeaweedServer) -> None:
    """A typing error in the bucket's name is told as one."""
    store = "s3://no-such-bucket-here/vol"
    for words in [("mkfs", "{store}"), *_EVERY_COMMAND]:
        filled = [*_words(in_s3, words, store), "--config", str(in_s3.config)]
        done = in_s3.run(*filled)
        _refused(done, ExitCode.STORE, "no-such-bucket-here")
    client = seaweed.client()
    names = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    client.close()
    assert "no-such-bucket-here" not in names


def test_an_address_where_nothing_listens(in_s3: Background) -> None:
    """It is tried again for as long as configured, then told in one line."""
    words = ["ls", in_s3.volume.url, "--config", str(in_s3.config)]
    done = in_s3.run(*words, "--endpoint-url", "http://127.0.0.1:1")
    _refused(done, ExitCode.STORE, "127.0.0.1:1")


def test_a_mount_point_that_is_missing(command: Background) -> None:
    """It is not made silently: a typing error would hide the data."""
    before = _objects(command)
    missing = command.volume.directory / "nowhere"
    done = command.try_mount(missing)
    _refused(done, ExitCode.MOUNTPOINT, str(missing), "make it first")
    assert not missing.exists()
    assert _objects(command) == before


def test_a_mount_point_that_is_a_file(command: Background) -> None:
    """Nothing can be mounted on it."""
    before = _objects(command)
    file = command.volume.directory / "file"
    file.touch()
    _refused(command.try_mount(file), ExitCode.MOUNTPOINT, str(file), "no directory")
    assert _objects(command) == before


def test_a_mount_point_in_use(command: Background) -> None:
    """A second mount over the first would hide it."""
    place = command.mount()
    (place / "file").write_bytes(b"first")
    assert command.run("sync", str(place)).returncode == 0
    before = _objects(command)
    done = command.try_mount(place, cache="other-cache")
    _refused(done, ExitCode.MOUNTPOINT, "mounted already", f"umount {place}")
    assert _objects(command) == before
    assert not (command.volume.directory / "other-cache").exists()
    assert (place / "file").read_bytes() == b"first"
    assert command.run("umount", str(place)).returncode == 0


def test_a_second_mount_on_one_local_directory(command: Background) -> None:
    """Two daemons on one journal would write over each other."""
    place = command.mount()
    (place / "file").write_bytes(b"first")
    assert command.run("sync", str(place)).returncode == 0
    pid = command.status(place)["writer"]["pid"]
    before = _objects(command)
    done = command.try_mount(command.place("second"))
    _refused(done, ExitCode.LOCAL, "in use", f"process {pid}", "--cache-dir")
    done = command.try_mount(command.place("second"), "--read-only")
    _refused(done, ExitCode.LOCAL, "in use")
    assert _objects(command) == before
    assert command.run("umount", str(place)).returncode == 0


def test_a_local_directory_that_was_copied(command: Background) -> None:
    """A cloned disk must not go on with the journal of its original."""
    place = command.mount()
    (place / "file").write_bytes(b"not yet in the store")
    os.kill(command.status(place)["writer"]["pid"], signal.SIGKILL)
    root = command.volume.directory
    shutil.copytree(root / "cache", root / "copied", copy_function=shutil.copy2)
    before = _objects(command)
    done = command.try_mount(command.place("second"), cache="copied")
    _refused(done, ExitCode.LOCAL, "is a copy", "--cache-dir")
    assert _objects(command) == before
    assert (command.mount() / "file").read_bytes() == b"not yet in the store"
    assert command.run("umount", str(place)).returncode == 0


def test_a_local_directory_of_another_volume(command: Background) -> None:
    """One cache for two volumes would mix them."""
    place = command.mount()
    assert command.run("umount", str(place)).returncode == 0
    other = f"file://{command.volume.directory}/other-store"
    assert command.run("mkfs", other).returncode == 0
    one = Background(replace(command.volume, url=other))
    _refused(one.try_mount(place), ExitCode.LOCAL, "belongs to volume")
    one.close()


def test_another_writer_is_alive(command: Background) -> None:
    """Without --takeover two machines do not fight for a volume."""
    place = command.mount()
    (place / "file").write_bytes(b"first")
    assert command.run("sync", str(place)).returncode == 0
    before = _objects(command)
    done = command.try_mount(command.place("second"), cache="second-cache")
    _refused(done, ExitCode.WRITER, "--takeover", "last heard of")
    assert _objects(command) == before
    assert command.run("umount", str(place)).returncode == 0


def test_commands_on_what_is_not_mounted(command: Background) -> None:
    """Not a hang, not a traceback."""
    place = command.place("bare")
    for name in ("status", "sync", "umount"):
        _refused(command.run(name, str(place)), ExitCode.MOUNTPOINT, "is not mounted")
        _refused(command.run(name, str(place / "no")), ExitCode.MOUNTPOINT, "is not mounted")
        _refused(
            command.run(name, "/proc"), ExitCode.MOUNTPOINT, "/proc is not a mount of s3fs-banyan"
        )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("mount", "/some/directory", "/mnt"), "is no store"),
        (("mount", "file:///tmp/x"), "wrong number of arguments"),
        (("mount", "file:///tmp/x", "/mnt", "-o", "cache-sise=1GiB"), "did you mean 'cache-size'"),
        (("mount", "file:///tmp/x", "/mnt", "-o", "durability"), "needs a value"),
        (("mount", "file:///tmp/x", "/mnt", "--commit-interval", "0.1s"), "at least 1s"),
        (("mount", "file:///tmp/x", "/mnt", "--durability", "later"), "durability"),
        (("mount", "file:///tmp/x", "/mnt", "--cache-dir", ""), "'--cache-dir': needs a value"),
        (("mount", "file:///tmp/x", "/mnt", "-o", "cache-dir="), "needs a value"),
        (("mount", "file:///tmp/x", ""), "MOUNTPOINT needs a value"),
        (("mount", "file:///tmp/x", "/mnt", "-o", "ro,takeover"), "--takeover"),
        (("status", ""), "needs a value"),
        (("cp", "file:///tmp/x", "file", ""), "LOCAL_DEST needs a value"),
        (("ls", "file:///tmp/x", "--config", ""), "'--config': needs a value"),
        (("explain", ""), "needs a value"),
        (("ls", "http://host/x"), "s3://BUCKET/PREFIX"),
        (("ls", "s3://key:secret-word@bucket/x"), "credentials"),
        (("ls",), "no store"),
        (("mkfs", "file:///tmp/x", "--config", "/does/not/exist"), "/does/not/exist"),
        (("nonsense",), "nonsense"),
        (("ls", "--nonsense"), "--nonsense"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_command_line_that_cannot_be_used(words: tuple[str, ...], expected: str) -> None:
    """What to type instead is in the line; what might be a secret is not."""
    done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, check=False)
    _refused(done, ExitCode.USAGE, expected)
    assert "secret-word" not in done.stderr
    assert "Value error" not in done.stderr


def test_a_path_that_is_not_in_the_volume(command: Background, tmp_path: Path) -> None:
    """Named as it was typed, with nothing made on the local side."""
    url = command.volume.url
    target = tmp_path / "target"
    for words in (("ls", url, "no/such"), ("cat", url, "no/such"), ("cp", url, "no/such", target)):
        _refused(command.run(*map(str, words)), ExitCode.USAGE, "/no", "no such file")
    assert not target.exists()
    _refused(command.run("cp", url, "/", str(target)), ExitCode.USAGE, "-r")
    _refused(command.run("cat", url, ""), ExitCode.USAGE, "/ is no regular file")
    _refused(command.run("cat", url, "two\nlines"), ExitCode.USAGE, "/two\\nlines: no such file")
    two = f"{tmp_path}/two\nlines"
    _refused(command.run("status", two), ExitCode.MOUNTPOINT, "two\\nlines is not mounted")


def test_rekey_of_a_plain_volume(command: Background) -> None:
    """Nobody should think up a passphrase for what has none."""
    done = command.run("volume", "rekey", command.volume.url)
    _refused(done, ExitCode.KEY, "is not encrypted")


def test_json_of_a_sound_volume_is_one_document(command: Background) -> None:
    """Programs read it whole, with nothing around it."""
    done = command.run("check", command.volume.url, "--json")
    assert json.loads(done.stdout)["sound"] is True
    assert done.stderr == ""
