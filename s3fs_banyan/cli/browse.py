"""Commands that look into a volume without mounting it: ls, cat, cp, tree."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import trio
import typer

from s3fs_banyan.app.build import connect
from s3fs_banyan.app.encryption import open_cipher
from s3fs_banyan.app.view import Entry, View, open_view
from s3fs_banyan.app.volume import read_volume
from s3fs_banyan.cli.copying import copy_out
from s3fs_banyan.cli.encryption import ask_passphrase
from s3fs_banyan.cli.options import (
    ConfigOption,
    EndpointOption,
    JsonOption,
    KeyFileOption,
    PassphraseFileOption,
    RegionOption,
)
from s3fs_banyan.cli.output import print_json, print_line, progress_bar, time_text
from s3fs_banyan.cli.scratch import scratch_directory
from s3fs_banyan.cli.settings import settings, take_store
from s3fs_banyan.config import Config
from s3fs_banyan.errors import ConfigError, ExitCode, InputOutput, UsageError

_WORDS_HELP = "The store (s3://... or file:///...) and the path in the volume."


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(ls)
    app.command()(cat)
    app.command()(cp)
    app.command()(tree)


@contextmanager
def view_of(url: str, config: Config) -> Iterator[View]:
    """Open a volume to be looked at, and close it behind the caller."""
    store = connect(url, config)
    try:
        volume = read_volume(store)
        encryption = ask_passphrase(config, volume).encryption
        cipher = open_cipher(store, volume, encryption)
        with (
            scratch_directory() as scratch,
            open_view(store, volume, scratch, cipher) as view,
        ):
            yield view
    finally:
        store.close()


# --- ls ----------------------------------------------------------------------------------


def ls(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[STORE] [PATH]", help=_WORDS_HELP)
    ] = None,
    long: Annotated[bool, typer.Option("-l", help="Modes, owners, sizes and times (UTC).")] = False,
    everything: Annotated[bool, typer.Option("-a", help="Names with a dot in front too.")] = False,
    recursive: Annotated[bool, typer.Option("-R", help="Everything below as well.")] = False,
    json: JsonOption = False,
    config: ConfigOption = None,
    passphrase_file: PassphraseFileOption = None,
    key_file: KeyFileOption = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
) -> None:
    """List a directory of a volume that need not be mounted.

    Shows what is in the store: a mount may have newer changes.

    Examples:

    * `s3fs-banyan ls file:///srv/volume`
    * `s3fs-banyan ls -l s3://backup/banyandb measure/data`
    """
    found = settings(
        config,
        endpoint_url=endpoint_url,
        region=region,
        passphrase_file=passphrase_file,
        key_file=key_file,
    )
    url, rest = take_store(words or [], found, "s3fs-banyan ls [STORE] [PATH]", range(2))
    with view_of(url, found) as view:
        top = view.find(os.fsencode(rest[0] if rest else ""))
        entries = _listed(view, top, recursive=recursive, everything=everything)
        if json:
            print_json([_as_json(view, entry) for entry in entries])
            return
        strip = len(top.path) + 1 if top.path and top.is_directory else 0
        for entry in entries:
            shown = os.fsdecode(entry.path[strip:])
            print_line(_long_line(view, entry, shown) if long else shown, _style(entry))


def _listed(view: View, top: Entry, *, recursive: bool, everything: bool) -> Iterator[Entry]:
    if not top.is_directory:
        yield top
        return
    open_directories = [iter(view.children(top))]  # no recursion: a path may be long
    while open_directories:
        entry = next(open_directories[-1], None)
        if entry is None:
            open_directories.pop()
            continue
        if entry.name.startswith(b".") and not everything:
            continue
        yield entry
        if recursive and entry.is_directory:
            open_directories.append(iter(view.children(entry)))


def _long_line(view: View, entry: Entry, shown: str) -> str:
    a = entry.attributes
    size = f"{os.major(a.rdev)},{os.minor(a.rdev)}" if _is_device(a.mode) else str(a.size)
    arrow = f" -> {os.fsdecode(view.target(entry))}" if entry.is_link else ""
    return (
        f"{stat.filemode(a.mode)} {a.nlink:>3} {a.uid:>5} {a.gid:>5} {size:>12} "
        f"{time_text(a.mtime_ns)} {shown}{arrow}"
    )


def _is_device(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _style(entry: Entry) -> str:
    if entry.is_directory:
        return "bold blue"
    if entry.is_link:
        return "cyan"
    return "green" if entry.is_file and entry.attributes.mode & 0o111 else ""


def _as_json(view: View, entry: Entry) -> dict[str, Any]:
    values: dict[str, Any] = {"path": os.fsdecode(entry.path), **entry.attributes._asdict()}
    values["mode"] = stat.filemode(entry.attributes.mode)
    if entry.is_link:
        values["target"] = os.fsdecode(view.target(entry))
    return values


# --- cat, cp -----------------------------------------------------------------------------


def cat(
    words: Annotated[list[str], typer.Argument(metavar="[STORE] PATH", help=_WORDS_HELP)],
    config: ConfigOption = None,
    passphrase_file: PassphraseFileOption = None,
    key_file: KeyFileOption = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
) -> None:
    """Write a file of a volume to standard output.

    Examples:

    * `s3fs-banyan cat file:///srv/volume measure/metadata.json`
    """
    found = settings(
        config,
        endpoint_url=endpoint_url,
        region=region,
        passphrase_file=passphrase_file,
        key_file=key_file,
    )
    url, (path,) = take_store(words, found, "s3fs-banyan cat [STORE] PATH", range(1, 2))
    with view_of(url, found) as view:
        entry = view.find(os.fsencode(path))
        if not entry.is_file:
            raise UsageError(f"{path or '/'} is no regular file", exit_code=ExitCode.USAGE)
        try:
            trio.run(_write_out, view, entry)
        except InputOutput as error:
            raise _unreadable(error) from error


async def _write_out(view: View, entry: Entry) -> None:
    async for _, data in view.read(entry):
        sys.stdout.buffer.write(data)  # a person or a pipe: there is nobody else to serve
    sys.stdout.buffer.flush()


def cp(
    words: Annotated[
        list[str], typer.Argument(metavar="[STORE] PATH LOCAL_DEST", help=_WORDS_HELP)
    ],
    recursive: Annotated[
        bool, typer.Option("-r", "--recursive", help="Copy a directory and all below it.")
    ] = False,
    json: JsonOption = False,
    config: ConfigOption = None,
    passphrase_file: PassphraseFileOption = None,
    key_file: KeyFileOption = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
) -> None:
    """Copy a file or a directory out of a volume, bit by bit, with times and modes.

    Into LOCAL_DEST if that is a directory, else to that name. As root owners are kept, too.

    Examples:

    * `s3fs-banyan cp file:///srv/volume measure/metadata.json .`
    * `s3fs-banyan cp -r s3://backup/banyandb measure /tmp/rescued`
    """
    found = settings(
        config,
        endpoint_url=endpoint_url,
        region=region,
        passphrase_file=passphrase_file,
        key_file=key_file,
    )
    usage = "s3fs-banyan cp [-r] [STORE] PATH LOCAL_DEST"
    url, (path, destination) = take_store(words, found, usage, range(2, 3))
    if not destination:
        raise ConfigError(f"LOCAL_DEST needs a value. Usage: {usage}")
    with view_of(url, found) as view:
        top = view.find(os.fsencode(path))
        if top.is_directory and not recursive:
            raise UsageError(
                f"{path or '/'} is a directory: copy it with -r", exit_code=ExitCode.USAGE
            )
        target = Path(destination)
        if target.is_dir() and top.path:
            target /= os.fsdecode(top.name)
        try:
            with progress_bar() as bar:
                counts = trio.run(copy_out, view, top, target, bar)
        except InputOutput as error:
            raise _unreadable(error) from error
        except OSError as error:
            raise UsageError(
                f"{error.filename or target}: {error.strerror}", exit_code=ExitCode.USAGE
            ) from error
    if json:
        print_json({"files": counts.files, "bytes": counts.size_bytes, "to": str(target)})


def _unreadable(error: InputOutput) -> UsageError:
    cause = error.__cause__
    code = getattr(cause, "exit_code", ExitCode.DAMAGE)
    return UsageError(str(cause or error), exit_code=code)


# --- tree --------------------------------------------------------------------------------


def tree(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[STORE] [PATH]", help=_WORDS_HELP)
    ] = None,
    json: JsonOption = False,
    config: ConfigOption = None,
    passphrase_file: PassphraseFileOption = None,
    key_file: KeyFileOption = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
) -> None:
    """Show a directory of a volume and everything below it as a tree.

    Examples:

    * `s3fs-banyan tree file:///srv/volume measure`
    """
    found = settings(
        config,
        endpoint_url=endpoint_url,
        region=region,
        passphrase_file=passphrase_file,
        key_file=key_file,
    )
    url, rest = take_store(words or [], found, "s3fs-banyan tree [STORE] [PATH]", range(2))
    with view_of(url, found) as view:
        top = view.find(os.fsencode(rest[0] if rest else ""))
        if json:
            _print_tree_as_json(view, top)
            return
        print_line(os.fsdecode(top.path) or "/", _style(top))
        directories = files = 0
        for prefix, entry in _tree_lines(view, top):
            print_line(prefix + os.fsdecode(entry.name))
            directories += entry.is_directory
            files += not entry.is_directory
        print_line(f"\n{directories} directories, {files} files")


def _tree_lines(view: View, top: Entry) -> Iterator[tuple[str, Entry]]:
    """Give (line drawing, entry) below a directory; as deep as the volume is, without recursion."""
    waiting: list[tuple[str, str, Entry]] = []

    def add(indent: str, directory: Entry) -> None:
        children = view.children(directory)
        for child in reversed(children):
            is_last = child is children[-1]
            mark, below = ("└── ", "    ") if is_last else ("├── ", "│   ")
            waiting.append((indent + mark, indent + below, child))

    if top.is_directory:
        add("", top)
    while waiting:
        line, below, entry = waiting.pop()
        yield line, entry
        if entry.is_directory:
            add(below, entry)


def _print_tree_as_json(view: View, top: Entry) -> None:
    """Print nested objects, one entry a line; a directory has `children`.

    As deep as the volume is, without recursion.
    """
    write = sys.stdout.write
    write(_opened(view, top))
    waiting = [iter(view.children(top))] if top.is_directory else []
    is_first = True
    while waiting:
        entry = next(waiting[-1], None)
        if entry is None:
            waiting.pop()
            write("]}")
            is_first = False
            continue
        write(("\n" if is_first else ",\n") + " " * len(waiting) + _opened(view, entry))
        is_first = entry.is_directory
        if entry.is_directory:
            waiting.append(iter(view.children(entry)))
    write("\n")
    sys.stdout.flush()


def _opened(view: View, entry: Entry) -> str:
    """Return an entry as JSON; that of a directory is open for its children."""
    text = json.dumps(_as_json(view, entry))
    return f'{text[:-1]}, "children": [' if entry.is_directory else text
