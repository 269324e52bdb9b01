"""explain: where a file's bytes lie, in which storage class, why, and for how much."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import trio
import typer
from rich.table import Table

from s3fs_banyan.app.build import class_policy
from s3fs_banyan.app.explain import Places, explain_file
from s3fs_banyan.cli.asking import ended, result_of, status_of
from s3fs_banyan.cli.browse import view_of
from s3fs_banyan.cli.options import (
    ConfigOption,
    EndpointOption,
    JsonOption,
    KeyFileOption,
    PassphraseFileOption,
    RegionOption,
    locate,
)
from s3fs_banyan.cli.output import console, print_json, printable, size_text
from s3fs_banyan.cli.settings import settings, take_store
from s3fs_banyan.config import Config
from s3fs_banyan.errors import ConfigError, ExitCode, UsageError
from s3fs_banyan.kernel import mount_source
from s3fs_banyan.runtime import RealRuntime

_USAGE = "s3fs-banyan explain [STORE_OR_MOUNT] PATH"
_PACKS_SHOWN_MAX = 20


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(explain)


def explain(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[STORE_OR_MOUNT] PATH",
            help="The store, and the path in the volume; or a mount point and the path in it; or "
            "the path of a file in a mount.",
        ),
    ],
    json: JsonOption = False,
    config: ConfigOption = None,
    passphrase_file: PassphraseFileOption = None,
    key_file: KeyFileOption = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
) -> None:
    """Explain in which storage class a file lies, which rule says so, and what it costs.

    A mount answers by the settings that it runs with; for a store they are those of --config.

    Examples:

    * `s3fs-banyan explain /mnt/banyandb/measure/data/default/seg-20260101/metadata`
    * `s3fs-banyan explain --config banyan.yaml s3://backup/banyandb measure/metadata.json`
    """
    mounted = _in_mount(words)
    if mounted is not None:
        found = _ask(*mounted)
    else:
        chosen = settings(
            config,
            endpoint_url=endpoint_url,
            region=region,
            passphrase_file=passphrase_file,
            key_file=key_file,
        )
        url, (path,) = take_store(words, chosen, _USAGE, range(1, 2))
        found = _look(url, path, chosen)
    if json:
        print_json(found)
    else:
        _show(found)


# --- finding out -------------------------------------------------------------------------


def _in_mount(words: Sequence[str]) -> tuple[Path, str] | None:
    """Return (mount point, path in it) if the words name a file of a mount; else None."""
    if not words[0]:
        raise ConfigError(f"PATH needs a value. Usage: {_USAGE}")
    if "://" in words[0] or len(words) > 2:
        return None
    if len(words) == 2:
        return locate(Path(words[0])), words[1].strip("/")
    # Not resolve(): it would enter the mount, which a stopped daemon does not answer.
    absolute = Path(os.path.abspath(words[0]))  # noqa: PTH100
    # From the root, so that none lies in a mount.
    for above in (*reversed(absolute.parents), absolute):
        place = locate(above)
        if mount_source(place) is not None:
            if above == absolute:
                raise ConfigError(f"{place} is a mount point: name a file in it. Usage: {_USAGE}")
            return place, str(absolute.relative_to(above))
    return None


def _ask(place: Path, path: str) -> dict[str, Any]:
    if status_of(place).get("role") == "follower":
        raise UsageError(
            f"{place} is mounted read-only: name its store instead, and --config",
            exit_code=ExitCode.USAGE,
        )
    try:
        found = trio.run(result_of, place, "explain", path)
    except OSError as error:
        raise ended(place) from error
    if found is None:
        raise ended(place)
    if "fault" in found:
        raise UsageError(str(found["fault"]), exit_code=ExitCode.USAGE)
    return found


def _look(url: str, path: str, config: Config) -> dict[str, Any]:
    with view_of(url, config) as view:
        entry = view.find(os.fsencode(path))
        if not entry.is_file:
            raise UsageError(f"{path or '/'} is no regular file", exit_code=ExitCode.USAGE)
        places = Places(extents=view.extents, committed=view.committed)

        async def look() -> dict[str, object]:
            return await explain_file(
                os.fsdecode(entry.path),
                entry.attributes,
                places,
                class_policy(config),
                now_ns=RealRuntime().wall_ns(),
                pack_bytes=config.volume.pack_bytes,
                currency=config.cost.currency,
            )

        return trio.run(look)


# --- showing -----------------------------------------------------------------------------


def _show(found: dict[str, Any]) -> None:
    out = console()
    money = found["currency"]
    head = Table(show_header=False, box=None, pad_edge=False)
    head.add_column(style="bold", no_wrap=True)
    head.add_column(overflow="fold")
    waiting = found["not_in_store_bytes"]
    stored = f"{size_text(found['stored_bytes'])} in {len(found['packs'])} objects"
    stored += f"; {size_text(waiting)} not in the store yet" if waiting else ""
    rows = [
        ("file", f"/{found['path']}"),
        ("size", f"{size_text(found['size'])}, {found['age_days']:.1f} days old"),
        ("stored", stored),
        ("cost", f"{found['cost_per_month']:.6f} {money} a month"),
        ("dies with", f"/{found['unit']}" if found["unit"] else "nothing: no pattern applies"),
        ("class now", f"{found['storage_class']}: {found['why']}"),
    ]
    for name, value in rows:
        head.add_row(name, printable(value))
    out.print(head)
    if found["rules"]:
        out.print(_table(("rule", "class", "path", "state"), found["rules"]))
    out.print(_costs(found))
    if found["packs"]:
        out.print(_packs(found))


def _table(names: tuple[str, ...], rows: list[dict[str, Any]]) -> Table:
    table = Table(*names, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(printable(str(row[name])) for name in names))
    return table


def _costs(found: dict[str, Any]) -> Table:
    """Show what an object of the file's would cost in each class until it is deleted."""
    size, days = size_text(found["judged_pack_bytes"]), found["classes"][0]["days"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class")
    table.add_column(f"{found['currency']} for {size} over {days:.0f} days", justify="right")
    table.add_column("pays after", justify="right")
    for one in found["classes"]:
        pays = one["pays_after_days"]
        text = "never" if pays is None else f"{pays} days" if pays else "-"
        table.add_row(one["class"], f"{one['cost']:.6f}", text)
    return table


def _packs(found: dict[str, Any]) -> Table:
    """Show the objects that hold the file, the first ones of many."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("object", "class", "size", "of this file"):
        table.add_column(name, justify="left" if name in {"object", "class"} else "right")
    for pack in found["packs"][:_PACKS_SHOWN_MAX]:
        size, share = size_text(pack["size"]), size_text(pack["file_bytes"])
        table.add_row(pack["object"], pack["storage_class"], size, share)
    left = len(found["packs"]) - _PACKS_SHOWN_MAX
    if left > 0:
        table.add_row(f"and {left} more", "", "", "")
    return table
