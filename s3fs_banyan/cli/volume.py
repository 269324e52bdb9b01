"""Commands on a volume as a whole: mkfs, check."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from s3fs_banyan.admin.check import Check, Finding, Summary
from s3fs_banyan.app.build import connect
from s3fs_banyan.app.encryption import open_cipher
from s3fs_banyan.app.volume import make_volume, read_volume
from s3fs_banyan.cli.encryption import ask_passphrase, new_secrets
from s3fs_banyan.cli.options import (
    ConfigOption,
    EndpointOption,
    JsonOption,
    KeyFileOption,
    PassphraseFileOption,
    RegionOption,
)
from s3fs_banyan.cli.output import print_json, print_line, printable, progress_bar, size_text
from s3fs_banyan.cli.scratch import scratch_directory
from s3fs_banyan.cli.settings import settings, take_store
from s3fs_banyan.errors import ExitCode, UsageError
from s3fs_banyan.format.volume import FEATURE_ENCRYPTION, VolumeDescriptor
from s3fs_banyan.remote.local import something_else_in
from s3fs_banyan.remote.options import parse_store_url
from s3fs_banyan.runtime import RealRuntime

StoreArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[STORE]",
        help="s3://BUCKET/PREFIX, az://ACCOUNT/CONTAINER/PREFIX, gs://BUCKET/PREFIX or "
        "file:///DIRECTORY",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(mkfs)
    app.command()(check)


def mkfs(
    store: StoreArgument = None,
    encrypt: Annotated[
        bool,
        typer.Option("--encrypt", help="Encrypt everything before it leaves this machine."),
    ] = False,
    config: ConfigOption = None,
    passphrase_file: PassphraseFileOption = None,
    key_file: KeyFileOption = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    json: JsonOption = False,
) -> None:
    """Make a volume in an empty bucket, prefix or directory.

    Examples:

    * `s3fs-banyan mkfs file:///srv/volume`
    * `s3fs-banyan mkfs s3://backup/banyandb --region ap-northeast-1`
    * `s3fs-banyan mkfs s3://backup/banyandb --endpoint-url http://127.0.0.1:8333`
    * `s3fs-banyan mkfs s3://backup/banyandb --encrypt --key-file /etc/banyandb.key`
    * `s3fs-banyan mkfs az://account/container/banyandb`
    * `s3fs-banyan mkfs gs://backup/banyandb`
    """
    found = settings(
        config,
        endpoint_url=endpoint_url,
        region=region,
        passphrase_file=passphrase_file,
        key_file=key_file,
    )
    url, _ = take_store(store or [], found, "s3fs-banyan mkfs [STORE]", range(1))
    is_encrypted = encrypt or found.encryption.is_given
    what = "--passphrase-file or --key-file"
    secrets = new_secrets(found.encryption, what) if is_encrypted else []
    runtime = RealRuntime()
    if (parsed := parse_store_url(url)).scheme == "file":
        other = something_else_in(parsed.directory)
        if other is not None:
            raise UsageError(
                f"{url} is not empty (it holds {other}): choose another directory",
                exit_code=ExitCode.VOLUME,
            )
    remote = connect(url, found, create=True)
    made = VolumeDescriptor(
        volume_id=runtime.random_bytes(16).hex(),
        created_ns=runtime.wall_ns(),
        pack_bytes=found.volume.pack_bytes,
        features_refuse=(FEATURE_ENCRYPTION,) if is_encrypted else (),
    )
    try:
        make_volume(remote, made, runtime, secrets)
    finally:
        remote.close()
    if json:
        print_json({"store": url, "volume_id": made.volume_id, "encrypted": is_encrypted})
    else:
        kind = "encrypted volume" if is_encrypted else "volume"
        print_line(f"made {kind} {made.volume_id} in {url}")


def check(
    store: StoreArgument = None,
    config: ConfigOption = None,
    passphrase_file: PassphraseFileOption = None,
    key_file: KeyFileOption = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    json: JsonOption = False,
) -> None:
    """Check every object of a volume and every reference; changes nothing.

    Everything is read and decoded. Exit code 9 if anything is damaged or missing; orphans
    (objects that nothing needs) are named and do no harm.

    Examples:

    * `s3fs-banyan check file:///srv/volume`
    * `s3fs-banyan check s3://backup/banyandb --json`
    """
    found = settings(
        config,
        endpoint_url=endpoint_url,
        region=region,
        passphrase_file=passphrase_file,
        key_file=key_file,
    )
    url, _ = take_store(store or [], found, "s3fs-banyan check [STORE]", range(1))
    remote = connect(url, found)
    try:
        volume = read_volume(remote)
        encryption = ask_passphrase(found, volume).encryption
        cipher = open_cipher(remote, volume, encryption)
        with scratch_directory() as scratch, progress_bar() as bar:
            task = bar.add_task("checking", total=None, detail="")

            def show(done: int, total: int, key: str) -> None:
                bar.update(task, completed=done, total=total, detail=key)

            run = Check(remote, volume, scratch, cipher, show)
            findings = []
            for finding in run.run():
                findings.append(finding)
                if not json:
                    _print_finding(finding)
    finally:
        remote.close()
    harmful = [finding for finding in findings if finding.kind != "orphan"]
    if json:
        print_json(
            {
                "store": url,
                "volume_id": volume.volume_id,
                "sound": not harmful,
                **asdict(run.summary),
                "findings": [asdict(finding) for finding in findings],
            }
        )
    else:
        _print_verdict(run.summary, len(harmful), len(findings) - len(harmful))
    if harmful:
        raise typer.Exit(ExitCode.DAMAGE)


def _print_finding(finding: Finding) -> None:
    style = "yellow" if finding.kind == "orphan" else "bold red"
    print_line(printable(f"{finding.kind}: {finding.key}: {finding.why}"), style)


def _print_verdict(summary: Summary, harmful: int, orphans: int) -> None:
    print_line(
        f"{summary.objects} objects, {size_text(summary.size_bytes)}: {summary.commits} commits up "
        f"to {summary.seq}, {summary.checkpoints} checkpoints, {summary.packs} packs, "
        f"{summary.chunks} living chunks, {summary.inodes} inodes"
    )
    if not summary.loaded:
        print_line("no state could be loaded: chunks were not compared with their places", "yellow")
    if harmful:
        print_line(f"DAMAGED: {harmful} findings", "bold red")
    else:
        print_line("sound" + (f", {orphans} orphans" if orphans else ""), "green")
