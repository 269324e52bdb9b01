"""Commands on a volume as a whole: mkfs, check."""

from __future__ import annotations

from typing import Annotated

import typer

from s3fs_banyan.app.build import connect
from s3fs_banyan.app.volume import make_volume
from s3fs_banyan.cli.options import (
    ConfigOption,
    EndpointOption,
    JsonOption,
    RegionOption,
    settings,
    take_store,
)
from s3fs_banyan.cli.output import print_json, print_line
from s3fs_banyan.format.volume import VolumeDescriptor
from s3fs_banyan.runtime import RealRuntime

StoreArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[STORE]", help="s3://BUCKET/PREFIX or file:///DIRECTORY"),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(mkfs)


def mkfs(
    store: StoreArgument = None,
    config: ConfigOption = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    json: JsonOption = False,
) -> None:
    """Make a volume in an empty bucket, prefix or directory.

    Examples:

    * `s3fs-banyan mkfs file:///srv/volume`
    * `s3fs-banyan mkfs s3://backup/banyandb --region ap-northeast-1`
    * `s3fs-banyan mkfs s3://backup/banyandb --endpoint-url http://127.0.0.1:8333`
    """
    found = settings(config, endpoint_url=endpoint_url, region=region)
    url, _ = take_store(store or [], found, "s3fs-banyan mkfs [STORE]", range(1))
    runtime = RealRuntime()
    remote = connect(url, found, create=True)
    made = VolumeDescriptor(
        volume_id=runtime.random_bytes(16).hex(),
        created_ns=runtime.wall_ns(),
        pack_bytes=found.volume.pack_bytes,
    )
    try:
        make_volume(remote, made, runtime)
    finally:
        remote.close()
    if json:
        print_json({"store": url, "volume_id": made.volume_id})
    else:
        print_line(f"made volume {made.volume_id} in {url}")
