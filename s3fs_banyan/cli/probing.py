"""The command probe: what a store can do."""

from __future__ import annotations

from dataclasses import asdict

import typer

from s3fs_banyan.app.build import store_options
from s3fs_banyan.cli.options import ConfigOption, EndpointOption, JsonOption, RegionOption
from s3fs_banyan.cli.output import print_json, print_line, printable
from s3fs_banyan.cli.settings import settings, take_store
from s3fs_banyan.cli.volume import StoreArgument
from s3fs_banyan.errors import ExitCode
from s3fs_banyan.remote.local import LocalStore
from s3fs_banyan.remote.open import open_bare_store
from s3fs_banyan.remote.options import parse_store_url
from s3fs_banyan.remote.probe import Found, is_usable, lacks_something, probe_store
from s3fs_banyan.runtime import RealRuntime

_STYLES = {"yes": "green", "no": "", "unclear": "yellow"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(probe)


def probe(
    store: StoreArgument = None,
    config: ConfigOption = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    json: JsonOption = False,
) -> None:
    """Find out by trying what a store can do, and whether it can hold a volume.

    Small objects are written below `probe/` and removed again; a volume that is there is not
    touched. Exit code 4 if the store lacks something that a volume cannot do without, 3 if it
    refused or did not answer what would have told.

    Examples:

    * `s3fs-banyan probe s3://backup --endpoint-url http://127.0.0.1:9000`
    * `s3fs-banyan probe az://account/container --json`
    """
    found = settings(config, endpoint_url=endpoint_url, region=region)
    url, _ = take_store(store or [], found, "s3fs-banyan probe [STORE]", range(1))
    parsed = parse_store_url(url)
    runtime = RealRuntime()
    remote = open_bare_store(parsed, store_options(found))
    rows: list[Found] = []
    try:
        token = runtime.random_bytes(8).hex()
        for row in probe_store(remote, parsed.scheme, token, runtime.wall_ns):
            rows.append(row)
            if not json:
                _print_row(row)
    finally:
        if isinstance(remote, LocalStore):
            remote.remove_made_directories()
        remote.close()
    usable, is_certain = is_usable(rows), lacks_something(rows)
    if json:
        listed = [asdict(row) | {"needed": row.needed} for row in rows]
        print_json({"store": url, "usable": usable, "found": listed})
    elif usable:
        print_line("this store can hold a volume", "green")
    elif is_certain:
        print_line("this store CANNOT hold a volume", "bold red")
    else:
        print_line(
            "whether this store can hold a volume is not known: see why needed rows are unclear, "
            "cure it, and probe again",
            "bold red",
        )
    if not usable:
        raise typer.Exit(ExitCode.VOLUME if is_certain else ExitCode.STORE)


def _print_row(row: Found) -> None:
    style = "bold red" if row.needed and row.verdict != "yes" else _STYLES[row.verdict]
    print_line(printable(f"{row.name:<20}{row.verdict:<9}{row.detail}".rstrip()), style)
