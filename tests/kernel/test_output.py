"""What a command writes arrives whole, or the command says that it did not."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3fs_banyan.errors import ExitCode
from tests.kernel.background import COMMAND_WITHIN_S, Background
from tests.kernel.mounts import PROGRAM

MIB = 1 << 20
_NO_SPACE = "s3fs-banyan: standard output: No space left on device\n"
_INTERRUPTED = 130
_INTERRUPTS_ITSELF = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def _store_file(command: Background, data: bytes) -> None:
    """Bring the file `big` into the volume."""
    place = command.mount()
    (place / "big").write_bytes(data)
    assert command.run("umount", str(place)).returncode == 0


def _to(output: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command with its standard output as the shell is told by `output`."""
    return subprocess.run(
        ["bash", "-c", f'exec "$@" {output}', "bash", *PROGRAM, *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_WITHIN_S,
        check=False,
    )


def test_cat_writes_every_byte_or_fails_without_pythons_buffer(
    command: Background, tmp_path: Path
) -> None:
    """A container sets PYTHONUNBUFFERED, and a part of a file must not pass for all of it."""
    data = os.urandom(9 * MIB)
    _store_file(command, data)
    out = tmp_path / "out"
    words = ("cat", command.volume.url, "big")
    done = _to(f"> {out}", *words, PYTHONUNBUFFERED="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert out.read_bytes() == data
    # A write that the limit of the size of files cuts short says so by its count alone.
    limited = f'trap "" XFSZ; ulimit -f 1024; exec "$@" > {out}'
    cut = subprocess.run(
        ["bash", "-c", limited, "bash", *PROGRAM, *words],
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        timeout=COMMAND_WITHIN_S,
        check=False,
    )
    assert out.stat().st_size == MIB
    assert (cut.returncode, cut.stderr) == (
        ExitCode.LOCAL,
        "s3fs-banyan: standard output: File too large\n",
    )


def test_cp_onto_a_full_disk_leaves_the_older_copy(command: Background, small_disk: Path) -> None:
    """An empty file under the final name looks like a copy, and the good one would be gone."""
    _store_file(command, os.urandom(4 * MIB))
    older, new = small_disk / "older", small_disk / "new"
    older.write_bytes(b"a good copy")
    for target in (older, new):
        done = command.run("cp", command.volume.url, "big", str(target))
        assert done.returncode == ExitCode.USAGE
        assert done.stderr == f"s3fs-banyan: {target}: No space left on device\n"
    assert {path.name: path.read_bytes() for path in small_disk.iterdir()} == {
        "older": b"a good copy"
    }


def test_cp_replaces_a_file_and_nothing_that_is_none(command: Background, tmp_path: Path) -> None:
    """Renamed over /dev/null, a copy would break the machine."""
    _store_file(command, b"the bytes")
    target, fifo = tmp_path / "target", tmp_path / "fifo"
    target.write_bytes(b"something longer than the bytes")
    os.mkfifo(fifo)
    assert command.run("cp", command.volume.url, "big", str(target)).returncode == 0
    assert target.read_bytes() == b"the bytes"
    done = command.run("cp", command.volume.url, "big", str(fifo))
    assert done.returncode == ExitCode.USAGE
    assert done.stderr == f"s3fs-banyan: {fifo}: is there and is no regular file\n"
    assert fifo.is_fifo()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words", [("deploy", "alerts"), ("--help",), ("--version",)], ids=lambda words: words[0]
)
def test_output_that_cannot_be_written_is_said_in_one_line(
    words: tuple[str, ...], unbuffered: str
) -> None:
    """Whoever sends a result into a file learns that it is not there."""
    full = _to("> /dev/full", *words, PYTHONUNBUFFERED=unbuffered)
    assert (full.returncode, full.stderr) == (ExitCode.LOCAL, _NO_SPACE)
    closed = _to(">&-", *words, PYTHONUNBUFFERED=unbuffered)
    assert (closed.returncode, closed.stderr) == (
        ExitCode.LOCAL,
        "s3fs-banyan: standard output: Bad file descriptor\n",
    )


@pytest.mark.parametrize("words", [("deploy", "alerts"), ("--help",)], ids=lambda words: words[0])
def test_a_pipe_without_a_reader_ends_as_documented(words: tuple[str, ...]) -> None:
    """`... | head` is no failure, and a script can still tell that it was cut short."""
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    done = subprocess.run(
        [*PROGRAM, *words], stdout=write_fd, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write_fd)
    assert (done.returncode, done.stderr) == (_INTERRUPTED, "")


def test_an_error_counts_although_the_output_before_it_was_lost(command: Background) -> None:
    """The first thing that went wrong is what is said."""
    done = _to("> /dev/full", "ls", command.volume.url, "no-such")
    assert done.returncode == ExitCode.USAGE
    assert done.stderr == "s3fs-banyan: /no-such: no such file or directory\n"


def test_an_interruption_during_the_imports_is_no_traceback(tmp_path: Path) -> None:
    """They take most of a short command, so that is when a person presses Ctrl-C."""
    (tmp_path / "typer.py").write_text(_INTERRUPTS_ITSELF, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a gate in the background ignores it
    try:
        done = _to("", "--help", PYTHONPATH=path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.returncode, done.stderr) == (_INTERRUPTED, "s3fs-banyan: interrupted\n")


def test_who_ignores_an_interruption_goes_on_ignoring_it(tmp_path: Path) -> None:
    """A background job of a shell must live through the Ctrl-C of what runs in front."""
    text = _INTERRUPTS_ITSELF.replace("time.sleep(60)", "raise SystemExit(5)")
    (tmp_path / "typer.py").write_text(text, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = _to("", "--help", PYTHONPATH=path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.returncode, done.stderr) == (5, "")
