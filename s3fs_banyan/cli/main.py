"""s3fs-banyan: the command."""

from __future__ import annotations

import sys
from pathlib import Path

import trio
import typer

from s3fs_banyan.app.build import connect, store_url
from s3fs_banyan.app.control import ask
from s3fs_banyan.app.mount import MountRequest, run_mount
from s3fs_banyan.app.volume import make_volume
from s3fs_banyan.config import load_config
from s3fs_banyan.errors import BanyanFSError
from s3fs_banyan.format.volume import VolumeDescriptor
from s3fs_banyan.kernel import unmount
from s3fs_banyan.observe import setup_logging
from s3fs_banyan.runtime import RealRuntime

app = typer.Typer()


@app.command()
def mkfs(store: str, config: Path | None = None, endpoint_url: str | None = None) -> None:
    over = {"storage.remote.endpoint_url": endpoint_url} if endpoint_url else {}
    cfg = load_config(config, over)
    runtime = RealRuntime()
    remote = connect(store_url(store, cfg), cfg, create=True)
    make_volume(
        remote,
        VolumeDescriptor(
            volume_id=runtime.random_bytes(16).hex(),
            created_ns=runtime.wall_ns(),
            pack_bytes=cfg.volume.pack_bytes,
        ),
        runtime,
    )


@app.command()
def mount(
    store: str,
    mountpoint: Path,
    config: Path | None = None,
    cache_dir: Path | None = None,
    takeover: bool = False,
    endpoint_url: str | None = None,
    failpoint: str = "",
) -> None:
    setup_logging("info", "text", sys.stderr)
    cfg = load_config(config, {})
    run_mount(
        MountRequest(
            url=store_url(store, cfg),
            mountpoint=mountpoint.absolute(),
            config=cfg,
            cache_dir=cache_dir,
            takeover=takeover,
            failpoint=failpoint,
        ),
        lambda: print("ready", flush=True),
    )


@app.command()
def status(mountpoint: Path) -> None:
    async def go() -> None:
        async for m in ask(mountpoint.absolute(), "status"):
            import json

            print(json.dumps(m, indent=1))

    trio.run(go)


@app.command()
def sync(mountpoint: Path) -> None:
    async def go() -> None:
        async for m in ask(mountpoint.absolute(), "sync"):
            print(m)

    trio.run(go)


@app.command()
def umount(mountpoint: Path) -> None:
    async def go() -> None:
        first = True
        async for m in ask(mountpoint.absolute(), "wait"):
            if first:
                unmount(mountpoint.absolute())
                first = False
            print(m)

    trio.run(go)


def main() -> None:
    try:
        app()
    except BanyanFSError as error:
        print(f"s3fs-banyan: {error}", file=sys.stderr)
        sys.exit(int(error.exit_code))


if __name__ == "__main__":
    main()
