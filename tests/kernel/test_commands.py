"""The commands on real mounts in the background."""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from s3fs_banyan.errors import ExitCode
from s3fs_banyan.kernel import mount_source
from tests.kernel.background import Background, wait_until
from tests.kernel.mounts import PROGRAM, Volume

WITHIN_S = 30.0


def _fill(top: Path) -> None:
    """Make something of each kind below `top`."""
    (top / "deep" / "er").mkdir(parents=True)
    (top / "empty").touch()
    (top / "small").write_bytes(b"four KiB " * 450)
    (top / "deep" / "big").write_bytes(os.urandom(3_000_000))
    with (top / "deep" / "sparse").open("wb") as file:
        file.seek(9_000_000)
        file.write(b"end")
    (top / "deep" / "er" / "zeros").write_bytes(bytes(200_000))
    (top / "link").symlink_to("deep/big")
    (top / "hard").hardlink_to(top / "deep" / "big")
    os.mkfifo(top / "fifo")
    os.setxattr(top / "small", b"user.colour", b"red")
    (top / "small").chmod(0o640)
    os.chown(top / "small", 1234, 4321)
    (top / os.fsdecode(b"odd \n\xff name")).write_bytes(b"odd")
    for path in sorted(top.rglob("*"), reverse=True):
        os.utime(
            path, ns=(1_111_111_111_000_000_001, 1_222_222_222_000_000_002), follow_symlinks=False
        )


def _describe(top: Path) -> dict[str, tuple[object, ...]]:
    """Everything that a copy has to keep, by relative path."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        a = path.lstat()
        content: object = None
        if path.is_symlink():
            content = path.readlink()
        elif path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        size = a.st_size if path.is_file() else 0
        found[str(path.relative_to(top))] = (
            *(a.st_mode, a.st_nlink if not path.is_dir() else 0, a.st_uid, a.st_gid, size),
            *(a.st_mtime_ns, content),
        )
    return found


def _objects(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every object of a store in a directory: time of its last write, and bytes."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_mount_in_the_background_lives_on_and_umount_brings_all_into_the_store(
    command: Background,
) -> None:
    """The daily round; without it nothing else matters."""
    place = command.mount()
    _fill(place)
    before = _describe(place)
    done = command.run("umount", str(place))
    assert (done.returncode, done.stderr) == (0, "")
    assert mount_source(place) is None
    again = command.mount(cache="another-cache")
    assert _describe(again) == before
    assert command.run("umount", str(again)).returncode == 0
    command.volume.check()


def test_what_is_looked_at_without_mounting_is_what_was_mounted(
    command: Background, tmp_path: Path
) -> None:
    """Rescue works without a mount, and to the bit."""
    place = command.mount()
    _fill(place)
    before = _describe(place)
    big = (place / "deep" / "big").read_bytes()
    assert command.run("sync", str(place)).returncode == 0
    url, config = command.volume.url, ["--config", str(command.config)]
    listed = json.loads(command.run("ls", "-a", "-R", "--json", url, *config).stdout)
    assert {entry["path"] for entry in listed} == set(before)
    names = command.run("ls", url, "deep", *config).stdout.splitlines()
    assert names == ["big", "er", "sparse"]
    long = command.run("ls", "-l", url, "/link", *config).stdout
    assert long.startswith("lrwxrwxrwx")
    assert long.endswith("link -> deep/big\n")
    tree = command.run("tree", url, "deep", *config).stdout
    assert "└── sparse" in tree
    assert "    └── zeros" in tree.replace("│", " ")
    nested = json.loads(command.run("tree", "--json", url, *config).stdout)
    assert set(_paths_in(nested)) == {"", *before}
    read = subprocess.run(
        [*PROGRAM, "cat", url, "link/../hard", *config], capture_output=True, check=False
    )
    assert read.returncode == ExitCode.USAGE  # a link to a file is no directory
    read = subprocess.run([*PROGRAM, "cat", url, "hard", *config], capture_output=True, check=True)
    assert read.stdout == big
    target = tmp_path / "copied"
    done = command.run("cp", "-r", url, "/", str(target), *config)
    assert (done.returncode, done.stderr) == (0, "")
    assert _describe(target) == before
    assert (target / "hard").samefile(target / "deep" / "big")
    assert os.getxattr(target / "small", b"user.colour") == b"red"
    assert (target / "deep" / "sparse").stat().st_blocks * 512 < 4_000_000
    assert command.run("umount", str(place)).returncode == 0


def _paths_in(entry: dict[str, Any]) -> Iterator[str]:
    yield entry["path"]
    for child in entry.get("children", ()):
        yield from _paths_in(child)


def test_a_tree_is_shown_however_deep_it_is(command: Background) -> None:
    """Deeper than Python may recurse."""
    place = command.mount()
    depth = sys.getrecursionlimit() + 200
    directory = os.open(place, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=directory)
        below = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    os.close(directory)
    assert command.run("umount", str(place)).returncode == 0
    words = [command.volume.url, "--config", str(command.config)]
    shown = command.run("tree", "--json", *words)
    assert shown.returncode == 0
    assert shown.stdout.count('"children": [') == depth + 1
    assert shown.stdout.endswith("[" + "]}" * (depth + 1) + "\n")
    assert command.run("tree", *words).stdout.count("└── d") == depth


def test_status_names_what_counts(command: Background) -> None:
    """People and programs read it, and it may be pasted anywhere."""
    place = command.mount("mnt", "--commit-interval", "1h")
    (place / "file").write_bytes(b"bytes")
    found = command.status(place)
    assert found["mountpoint"] == str(place)
    assert found["online"] is True
    assert found["usage"]["inodes"] == 2
    assert found["lag"]["bytes"] == 5
    text = command.run("status", str(place)).stdout
    assert found["volume_id"] in text
    assert "not in the store" in text
    assert "p99" in text
    synced = json.loads(command.run("sync", "--json", str(place)).stdout)
    assert synced["seq"] == command.status(place)["commit"]["seq"]
    assert command.status(place)["lag"]["bytes"] == 0
    assert command.run("umount", str(place)).returncode == 0


def test_explain_tells_of_a_file_in_a_mount_and_in_its_store(command: Background) -> None:
    """The same answer, whether the volume is mounted or not, and one line where there is none."""
    place = command.mount()
    (place / "seg-1").mkdir()
    file = place / "seg-1" / "odd \n name"
    file.write_bytes(os.urandom(300_000))
    young = json.loads(command.run("explain", str(file), "--json").stdout)
    assert command.run("sync", str(place)).returncode == 0
    mounted = json.loads(command.run("explain", str(place), f"seg-1/{file.name}", "--json").stdout)
    config = ["--config", str(command.config)]
    stored = json.loads(
        command.run("explain", command.volume.url, f"seg-1/{file.name}", "--json", *config).stdout
    )
    assert young["not_in_store_bytes"] + young["stored_bytes"] >= 300_000
    assert mounted["packs"] == stored["packs"]
    assert mounted["unit"] == stored["unit"] == "seg-1"
    assert mounted["stored_bytes"] >= 300_000
    text = command.run("explain", str(file)).stdout
    assert "STANDARD: no rule applies" in text
    assert "odd \\n name" in text
    for path in (place / "absent", place / "seg-1"):
        refused = command.run("explain", str(path))
        assert (refused.returncode, refused.stderr.count("\n")) == (ExitCode.USAGE, 1)
    refused = command.run("explain", str(place))
    assert (refused.returncode, "is a mount point" in refused.stderr) == (ExitCode.USAGE, True)
    found = command.status(place)["cost"]
    assert found["requests"]["put"]["requests"] > 0
    assert sum(one["objects"] for one in found["storage"]) > 0
    assert "(estimate)" in command.run("status", str(place)).stdout


def test_a_busy_mount_names_who_holds_it_and_stays(command: Background) -> None:
    """Otherwise a person has to search, or reaches for --lazy without knowing what for."""
    place = command.mount()
    with (place / "held").open("wb") as file:
        file.write(b"1")
        file.flush()
        done = command.run("umount", str(place))
        assert done.returncode == ExitCode.MOUNTPOINT
        assert f"process {os.getpid()}: has {place}/held open" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert mount_source(place) is not None
        file.write(b"2")
    assert (place / "held").read_bytes() == b"12"
    assert command.run("umount", str(place)).returncode == 0


def test_a_mount_of_another_namespace_is_not_waited_for(command: Background) -> None:
    """Nobody here could detach it: the command would wait until somebody does there."""
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as stranger:
        assert stranger.stdin is not None
        assert stranger.stdout is not None
        print("here", file=stranger.stdin, flush=True)
        assert stranger.stdout.readline() == "here\n"  # it has its namespace before the mount
        place = command.mount()
        there = ["nsenter", "--mount", "--target", str(stranger.pid)]
        done = subprocess.run(
            [*there, *PROGRAM, "umount", str(place)],
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
        stranger.stdin.close()
    assert done.returncode == ExitCode.MOUNTPOINT
    assert "another mount namespace" in done.stderr
    assert mount_source(place) is not None
    assert command.run("umount", str(place)).returncode == 0


def test_a_lazy_umount_detaches_and_waits_for_the_last_user(command: Background) -> None:
    """What the last user writes after the detaching reaches the store, too."""
    place = command.mount("mnt", "--commit-interval", "1s")
    with (place / "held").open("wb") as file:
        running = subprocess.Popen(
            [*PROGRAM, "umount", "--lazy", str(place)], stderr=subprocess.PIPE, text=True
        )
        wait_until(lambda: mount_source(place) is None)
        file.write(b"late")
        file.flush()
        assert running.stderr is not None
        assert "still in use" in running.stderr.readline()
        assert running.poll() is None
    with running:
        assert running.wait(WITHIN_S) == 0
    read = command.run("cat", command.volume.url, "held", "--config", str(command.config))
    assert read.stdout == "late"


def test_a_dead_daemon_is_named_and_mounting_again_goes_on(command: Background) -> None:
    """After a crash one command is enough, and nothing that was answered is lost."""
    place = command.mount()
    (place / "file").write_bytes(b"answered")
    os.kill(command.status(place)["writer"]["pid"], signal.SIGKILL)
    wait_until(lambda: command.run("status", str(place)).returncode == ExitCode.DAEMON)
    assert command.mount() == place
    assert (place / "file").read_bytes() == b"answered"
    os.kill(command.status(place)["writer"]["pid"], signal.SIGKILL)
    wait_until(lambda: command.run("status", str(place)).returncode == ExitCode.DAEMON)
    done = command.run("umount", str(place))
    assert done.returncode == ExitCode.DAEMON
    assert "mount again" in done.stderr
    assert mount_source(place) is None


def test_a_stopped_daemon_is_not_waited_for_with_the_mount_in_the_way(command: Background) -> None:
    """`ls`, `cat` and `check` on the store work while a mount hangs."""
    place = command.mount()
    (place / "file").write_bytes(b"in the store")
    assert command.run("sync", str(place)).returncode == 0
    pid = command.status(place)["writer"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        read = command.run("cat", command.volume.url, "file", "--config", str(command.config))
        assert read.stdout == "in the store"
        command.volume.check()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert command.run("umount", str(place)).returncode == 0


def test_a_read_only_mount_follows_and_changes_nothing(command: Background) -> None:
    """Readers on other machines see new commits within seconds, file content included."""
    place = command.mount()
    (place / "file").write_bytes(b"old text")
    assert command.run("sync", str(place)).returncode == 0
    reader = command.mount("reader", "-o", "ro,_netdev", cache="reader-cache")
    assert (reader / "file").read_bytes() == b"old text"
    with pytest.raises(OSError, match="Read-only"):
        (reader / "other").touch()
    (place / "file").write_bytes(b"new text")
    (place / "made").mkdir()
    assert command.run("sync", str(place)).returncode == 0
    wait_until(lambda: (reader / "file").read_bytes() == b"new text")
    wait_until((reader / "made").is_dir)
    assert command.status(reader)["role"] == "follower"
    assert "read-only" in command.run("status", str(reader)).stdout
    assert command.run("umount", str(reader)).returncode == 0
    (place / "after").write_bytes(b"the writer goes on")
    assert command.run("umount", str(place)).returncode == 0
    command.volume.check()


def test_check_names_every_object_with_a_flipped_bit(command: Background) -> None:
    """Damage that `check` does not see is found by the restore that needed the object."""
    place = command.mount()
    (place / "big").write_bytes(os.urandom(9_000_000))
    (place / "small").write_bytes(b"small")
    assert command.run("umount", str(place)).returncode == 0
    root = Path(command.volume.url.removeprefix("file://"))
    objects = [p for p in root.rglob("*") if p.is_file()]
    assert len(objects) >= 4
    for path in objects:
        whole = path.read_bytes()
        for position in {0, len(whole) // 2, len(whole) - 1}:
            flipped = bytearray(whole)
            flipped[position] ^= 4
            path.write_bytes(flipped)
            done = command.run("check", command.volume.url, "--json")
            key = str(path.relative_to(root)).replace("+/", "/")
            assert done.returncode in {ExitCode.DAMAGE, ExitCode.FORMAT}, (key, position)
            assert key in done.stdout + done.stderr, (key, position)
        path.write_bytes(whole)
    command.volume.check()


def test_check_names_missing_and_orphan_objects_and_changes_nothing(command: Background) -> None:
    """A lost object is damage, a superfluous one is not."""
    place = command.mount()
    (place / "big").write_bytes(os.urandom(9_000_000))
    assert command.run("umount", str(place)).returncode == 0
    root = Path(command.volume.url.removeprefix("file://"))
    (pack,) = (root / "pack+").rglob("*-*")
    twin = pack.with_name(f"{'f' * 16}-{'0' * 16}")
    twin.write_bytes(pack.read_bytes())
    before = _objects(root)
    found = json.loads(command.run("check", command.volume.url, "--json").stdout)
    assert found["sound"] is True
    assert [finding["kind"] for finding in found["findings"]] == ["orphan"]
    assert twin.name in found["findings"][0]["key"]
    assert _objects(root) == before
    pack.unlink()
    done = command.run("check", command.volume.url)
    assert done.returncode == ExitCode.DAMAGE
    assert f"missing: {str(pack.relative_to(root)).replace('+/', '/')}" in done.stdout


def test_cp_says_what_is_damaged_instead_of_copying_it(command: Background, tmp_path: Path) -> None:
    """Wrong bytes in a rescued file are worse than none."""
    place = command.mount()
    (place / "big").write_bytes(os.urandom(9_000_000))
    assert command.run("umount", str(place)).returncode == 0
    root = Path(command.volume.url.removeprefix("file://"))
    (pack,) = (root / "pack+").rglob("*-*")
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    done = command.run("cp", command.volume.url, "big", str(tmp_path / "out"))
    assert done.returncode == ExitCode.DAMAGE
    assert pack.name in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_pipe_that_closes_is_no_failure_to_be_explained(command: Background) -> None:
    """`cat … | head` ends quietly."""
    place = command.mount()
    (place / "big").write_bytes(os.urandom(9_000_000))
    assert command.run("umount", str(place)).returncode == 0
    shell = f"{' '.join(PROGRAM)} cat {command.volume.url} big | head -c 10 | wc -c"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "10"
    assert done.stderr == ""


def test_a_local_copy_is_bit_exact(command: Background, tmp_path: Path) -> None:
    """One file by name, into a directory."""
    place = command.mount()
    (place / "d").mkdir()
    (place / "d" / "big").write_bytes(os.urandom(5_000_001))
    assert command.run("sync", str(place)).returncode == 0
    assert command.run("cp", command.volume.url, "d/big", str(tmp_path)).returncode == 0
    assert filecmp.cmp(place / "d" / "big", tmp_path / "big", shallow=False)
    assert command.run("umount", str(place)).returncode == 0


def test_a_daemon_that_ends_leaves_the_next_ones_socket_alone(command: Background) -> None:
    """Both have the same mount point; without its socket the second cannot even be unmounted."""
    place = command.mount()
    first = command.status(place)["writer"]["pid"]
    with (place / "held").open("wb") as file:
        file.write(b"1")
        running = subprocess.Popen([*PROGRAM, "umount", "--lazy", str(place)])
        wait_until(lambda: mount_source(place) is None)
        command.mount("mnt", "--read-only", cache="reader-cache")
        assert command.status(place)["writer"]["pid"] != first
    assert running.wait(WITHIN_S) == 0
    assert command.status(place)["role"] == "follower"
    assert command.run("umount", str(place)).returncode == 0


def test_a_mount_on_s3_tells_its_secret_to_nobody(
    make_s3_volume: Callable[..., Volume], tmp_path: Path
) -> None:
    """Not in status, log or process title, and errors are known by their exit code alone."""
    command = Background(make_s3_volume())
    try:
        place = command.mount()
        _fill(place)
        before = _describe(place)
        secret = command.volume.environment["AWS_SECRET_ACCESS_KEY"]
        pid = command.status(place)["writer"]["pid"]
        told = command.run("status", str(place)).stdout + json.dumps(command.status(place))
        told += Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
        assert command.run("umount", str(place)).returncode == 0
        told += (command.volume.directory / "cache" / "log").read_text(encoding="utf-8")
        assert "mounted" in told
        assert secret not in told
        config = ["--config", str(command.config)]
        target = tmp_path / "copied"
        assert command.run(
            "cp", "-r", "/", str(target), *config, command.volume.url
        ).returncode == (ExitCode.USAGE)
        copied = command.run("cp", "-r", command.volume.url, "/", str(target), *config)
        assert copied.returncode == 0, copied.stderr
        assert _describe(target) == before
        command.volume.check()
    finally:
        command.close()


def test_while_the_store_is_away_a_mount_goes_on_from_its_local_directory(
    make_s3_volume: Callable[..., Volume], tmp_path: Path
) -> None:
    """A daemon that dies during an outage must not take the database down with it."""
    local = tmp_path / "local"
    command = Background(make_s3_volume({"cache": {"directory": str(local)}}))
    try:
        place = command.place("mnt")
        words = ["mount", command.volume.url, str(place), "--config", str(command.config)]
        assert command.run(*words).returncode == 0
        command.adopt(place)
        (place / "file").write_bytes(b"answered")
        os.kill(command.status(place)["writer"]["pid"], signal.SIGKILL)
        away = command.run(*words, "--endpoint-url", "http://127.0.0.1:1")
        assert away.returncode == 0, away.stderr
        command.adopt(place)
        assert (place / "file").read_bytes() == b"answered"
        (place / "more").write_bytes(b"during the outage")
        status = command.run("status", str(place)).stdout
        assert status.startswith("OFFLINE")
        os.kill(command.status(place)["writer"]["pid"], signal.SIGKILL)
        assert command.run(*words).returncode == 0
        command.adopt(place)
        assert command.run("umount", str(place)).returncode == 0
        config = ["--config", str(command.config)]
        names = command.run("ls", command.volume.url, *config).stdout.split()
        assert names == ["file", "more"]
    finally:
        command.close()
