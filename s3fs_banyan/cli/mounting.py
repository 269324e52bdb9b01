"""The command that mounts: its options, the background process, and where that one logs.

In the background (the default) the command runs itself again, detached, with `--foreground` and
a descriptor over which the daemon says that the mount answers. Until then the daemon's error
line and exit code are this command's own.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer

from s3fs_banyan.app.build import connect, default_cache_directory
from s3fs_banyan.app.encryption import unlock
from s3fs_banyan.app.request import MountRequest
from s3fs_banyan.app.volume import read_volume
from s3fs_banyan.cli.asking import control_answers
from s3fs_banyan.cli.encryption import ask_passphrase, with_passphrase
from s3fs_banyan.cli.loading import uncollected
from s3fs_banyan.cli.mount_options import (
    AcceptLossOption,
    CacheDirOption,
    CacheSizeOption,
    CommitIntervalOption,
    DurabilityOption,
    MetricsAddressOption,
    MountOptions,
    ReadOnlyOption,
    SegmentSizeOption,
    TakeoverOption,
    parse_mount_options,
)
from s3fs_banyan.cli.options import (
    ConfigOption,
    EndpointOption,
    KeyFileOption,
    PassphraseFileOption,
    RegionOption,
)
from s3fs_banyan.cli.output import print_line
from s3fs_banyan.cli.settings import settings, take_store
from s3fs_banyan.commit.local import LocalDirectory, load_local_volume, must_be_usable
from s3fs_banyan.config import Config
from s3fs_banyan.errors import ConfigError, Corrupt, ExitCode, StoreError, UsageError
from s3fs_banyan.format.sealed_json import is_hex
from s3fs_banyan.format.volume import VOLUME_ID_BYTES
from s3fs_banyan.kernel import check_mountpoint, mount_source, unmount
from s3fs_banyan.observe.log import setup_logging
from s3fs_banyan.remote.options import parse_store_url

logger = logging.getLogger(__name__)

_Run = Callable[[MountRequest, Callable[[], None]], None]

_READY: Final = b"ready\n"
_USAGE: Final = "s3fs-banyan mount [STORE] MOUNTPOINT"
_LOG_BYTES_MAX: Final = 10 << 20


def register(app: typer.Typer) -> None:
    """Add the command of this group."""
    app.command()(mount)


def mount(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="[STORE] MOUNTPOINT", show_default=False)],
    config: ConfigOption = None,
    cache_dir: CacheDirOption = None,
    cache_size: CacheSizeOption = None,
    durability: DurabilityOption = None,
    commit_interval: CommitIntervalOption = None,
    read_only: ReadOnlyOption = False,
    takeover: TakeoverOption = False,
    accept_loss: AcceptLossOption = False,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay in the foreground, log to standard error.")
    ] = False,
    journal_segment_size: SegmentSizeOption = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    metrics_address: MetricsAddressOption = None,
    passphrase_file: PassphraseFileOption = None,
    key_file: KeyFileOption = None,
    options: Annotated[
        list[str] | None,
        typer.Option("-o", metavar="KEY=VALUE,...", help="The same, as mount(8) says it."),
    ] = None,
    ready_fd: Annotated[int, typer.Option(hidden=True)] = -1,
    passphrase_fd: Annotated[int, typer.Option(hidden=True)] = -1,
    failpoint: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Mount a volume.

    Returns when the mount answers; the daemon goes on in the background and logs to `log` in
    its local directory.

    Examples:

    * `s3fs-banyan mount file:///srv/volume /mnt/banyandb`
    * `s3fs-banyan mount s3://backup/banyandb /mnt/banyandb --durability remote`
    * `s3fs-banyan mount --config /etc/s3fs-banyan.yaml /mnt/banyandb -o ro`
    """
    given = parse_mount_options(options or [])
    typed = {
        "config": config,
        "cache_dir": cache_dir,
        "cache_size": cache_size,
        "durability": durability,
        "commit_interval": commit_interval,
        "read_only": read_only,
        "takeover": takeover,
        "accept_loss": accept_loss,
        "journal_segment_size": journal_segment_size,
        "endpoint_url": endpoint_url,
        "region": region,
        "metrics_address": metrics_address,
        "passphrase_file": passphrase_file,
        "key_file": key_file,
    }
    given = replace(given, **{name: value for name, value in typed.items() if value})  # type: ignore[arg-type]
    if given.read_only and given.takeover:
        raise ConfigError("--takeover makes this mount the writer, --read-only none: give one")
    request = _request(words, given, failpoint)
    if passphrase_fd >= 0:
        request = _typed_for_the_daemon(request, passphrase_fd)
    elif ready_fd < 0:
        request = _with_key(request, is_daemon_next=not foreground)
    if foreground:
        _serve(request, _run_of(given), ready_fd=ready_fd, debug=bool(context.obj))
    else:
        _serve_in_background(request)


def _request(words: list[str], given: MountOptions, failpoint: str) -> MountRequest:
    """Check what can be checked without the daemon, cheapest first, and say what to mount."""
    found = settings(
        given.config,
        endpoint_url=given.endpoint_url,
        region=given.region,
        passphrase_file=given.passphrase_file,
        key_file=given.key_file,
        cache__size=given.cache_size,
        durability=given.durability,
        commit__interval=given.commit_interval,
        journal__segment_size=given.journal_segment_size,
        metrics__address=given.metrics_address,
    )
    url, (mountpoint,) = take_store(words, found, _USAGE, range(1, 2))
    if not mountpoint:
        raise ConfigError(f"MOUNTPOINT needs a value. Usage: {_USAGE}")
    try:
        place = Path(mountpoint).resolve()
    except OSError as error:
        raise UsageError(
            f"{mountpoint}: {error.strerror}", exit_code=ExitCode.MOUNTPOINT
        ) from error
    _clear_dead_mount(place)
    check_mountpoint(place)
    with must_be_usable(given.cache_dir or found.cache.directory):
        cache_dir = _cache_directory(url, found, given)
    _check_apart(place, "the local directory", cache_dir)
    if (parsed := parse_store_url(url)).scheme == "file":
        _check_apart(place, "the store", parsed.directory)
    return MountRequest(
        url=url,
        mountpoint=place,
        config=found,
        cache_dir=cache_dir,
        takeover=given.takeover,
        accept_loss=given.accept_loss,
        failpoint=failpoint,
    )


def _check_apart(place: Path, what: str, directory: Path) -> None:
    """Refuse what would lie in the mount that needs it: the daemon would wait for itself."""
    resolved = directory.resolve()
    if place == resolved or place in resolved.parents:
        raise ConfigError(f"{what} {directory} lies on the mount point {place}: choose another")


def _cache_directory(url: str, config: Config, given: MountOptions) -> Path:
    """Return the local directory; before one is made, the store has shown its volume.

    Where none is given it has the volume's name, which is noted beside it: while the store is
    away, a mount goes on from what is here.
    """
    directory = given.cache_dir
    if directory is not None and (directory / "identity.json").exists():
        return directory.absolute()
    note = config.cache.directory / f"store-{hashlib.sha256(url.encode()).hexdigest()[:24]}"
    try:
        volume_id = _volume_id(url, config, is_known=directory is None and note.exists())
    except StoreError as error:
        if directory is not None or not error.retryable or not note.exists():
            raise
        volume_id = _noted(note)
    else:
        if directory is not None:
            return directory.absolute()
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        note.write_text(volume_id, encoding="ascii")
    default = default_cache_directory(config, volume_id)
    return default.with_name(f"{default.name}.follower") if given.read_only else default


def _noted(note: Path) -> str:
    """Return the volume id that was noted; raises `Corrupt`: half a name is another directory."""
    volume_id = note.read_bytes().decode("ascii", "replace")
    if not is_hex(volume_id, VOLUME_ID_BYTES):
        raise Corrupt(
            "file",
            str(note),
            "it names no volume: mount when the store is back, or give the "
            "--cache-dir of this volume",
        )
    return volume_id


def _volume_id(url: str, config: Config, *, is_known: bool) -> str:
    store = connect(url, config, is_known=is_known)
    try:
        return read_volume(store).volume_id
    finally:
        store.close()


def _with_key(request: MountRequest, *, is_daemon_next: bool) -> MountRequest:
    """Ask for a passphrase where one is needed, and refuse a wrong key before anything is made.

    A local directory that is there already is not changed by a daemon that is refused.
    """
    config, local = request.config, LocalDirectory(root=request.cache_dir or Path())
    is_new = not (local.root / "identity.json").exists()
    is_to_be_asked = sys.stdin.isatty() and not config.encryption.is_given
    known = None if is_new else load_local_volume(local)
    if known is not None:
        config = ask_passphrase(config, known)
    elif is_to_be_asked or (is_new and is_daemon_next):
        store = connect(request.url, config)
        try:
            volume = read_volume(store)
            config = ask_passphrase(config, volume)
            unlock(store, volume, config.encryption)
        except StoreError as error:
            if not error.retryable:
                raise
            logger.debug("the key is not checked yet: %s", error)
        finally:
            store.close()
    return replace(request, config=config)


def _typed_for_the_daemon(request: MountRequest, fd: int) -> MountRequest:
    """Take the passphrase that a person typed to the command that started this daemon."""
    with os.fdopen(fd, "rb") as pipe:
        passphrase = pipe.read().decode("utf-8", "surrogateescape")
    return replace(request, config=with_passphrase(request.config, passphrase))


def _clear_dead_mount(place: Path) -> None:
    """Detach what a daemon that died left here: nobody will ever answer it again."""
    if mount_source(place) is None or control_answers(place):
        return
    try:
        os.statvfs(place)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            unmount(place, lazy=True)


# --- in the foreground, or as the daemon -------------------------------------------------


def _run_of(given: MountOptions) -> _Run:
    """Return what serves such a mount; imported by the process that serves alone."""
    with uncollected():
        if given.read_only:
            from s3fs_banyan.app.follower import run_read_only_mount

            return run_read_only_mount
        from s3fs_banyan.app.mount import run_mount

        return run_mount


def _serve(request: MountRequest, run: _Run, *, ready_fd: int, debug: bool) -> None:
    """Mount and serve in this process; `ready_fd` is told when the mount answers.

    As the daemon, standard error is the log; what goes wrong before the mount answers is raised
    with the starter's standard error back in place.
    """
    log = request.config.log
    starter = -1
    if ready_fd >= 0:
        directory = request.cache_dir or Path()
        with must_be_usable(directory):
            starter = _log_to_file(directory)
        os.chdir("/")
    setup_logging("debug" if debug else log.level, log.format, sys.stderr)
    is_ready = False

    def ready() -> None:
        nonlocal is_ready
        is_ready = True
        if ready_fd >= 0:
            os.write(ready_fd, _READY)
            os.close(ready_fd)
            os.close(starter)

    try:
        run(request, ready)
    except BaseException as error:
        logger.error("the daemon ends: %s", error)
        if starter >= 0 and not is_ready:
            os.dup2(starter, sys.stderr.fileno())
        raise


def _log_to_file(directory: Path) -> int:
    """Let standard error be the log from here on, for the worker process as well.

    Returns a descriptor of what it was before.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / "log"
    if path.exists() and path.stat().st_size > _LOG_BYTES_MAX:
        path.replace(directory / "log.old")
    starter = os.dup(sys.stderr.fileno())
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.dup2(fd, sys.stderr.fileno())
    os.close(fd)
    return starter


def _passphrase_pipe(config: Config) -> int:
    """Return a descriptor from which the daemon reads the passphrase, -1 if there is none.

    It may have been typed; no argument and no variable of a process ever holds it.
    """
    secret = config.encryption.passphrase
    if secret is None:
        return -1
    read_fd, write_fd = os.pipe()
    try:
        os.write(write_fd, secret.get_secret_value().encode("utf-8", "surrogateescape"))
    finally:
        os.close(write_fd)
    return read_fd


def _with_options(words: list[str], *added: str) -> list[str]:
    """Return the command line with more options, right behind the command: `--` may follow."""
    behind = words.index("mount") + 1
    return [*words[:behind], *added, *words[behind:]]


def _serve_in_background(request: MountRequest) -> None:
    """Start the daemon and return when its mount answers; else end as it ended."""
    read_fd, write_fd = os.pipe()
    package = Path(__file__).parents[2]
    path = os.environ.get("PYTHONPATH")
    passphrase_fd = _passphrase_pipe(request.config)
    with tempfile.TemporaryFile() as said:
        daemon = subprocess.Popen(  # noqa: S603  # this very command again
            [
                *(sys.executable, "-m", "s3fs_banyan.cli.main"),
                *_with_options(
                    sys.argv[1:],
                    *("--foreground", "--ready-fd", str(write_fd)),
                    *("--passphrase-fd", str(passphrase_fd)),
                ),
            ],
            env={**os.environ, "PYTHONPATH": f"{package}:{path}" if path else str(package)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            pass_fds=(write_fd, passphrase_fd) if passphrase_fd >= 0 else (write_fd,),
            start_new_session=True,
        )
        os.close(write_fd)
        if passphrase_fd >= 0:
            os.close(passphrase_fd)
        try:
            answer = os.read(read_fd, len(_READY))
        except KeyboardInterrupt:
            daemon.terminate()
            raise
        finally:
            os.close(read_fd)
        if answer == _READY:
            print_line(f"mounted {request.url} on {request.mountpoint}")
            return
        code = daemon.wait()
        said.seek(0)
        sys.stderr.write(said.read().decode(errors="replace"))
        sys.stderr.flush()
        if code < 0:
            raise UsageError(
                f"the daemon was ended by signal {-code}, see {request.cache_dir}/log",
                exit_code=ExitCode.DAEMON,
            )
        raise typer.Exit(code or ExitCode.DAEMON)
