"""Keys of encrypted volumes at the command line: asking a person, and `volume rekey`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr

from s3fs_banyan.app.build import connect
from s3fs_banyan.app.encryption import check_new_secrets, find_secrets, rekey, unlock
from s3fs_banyan.app.volume import read_volume
from s3fs_banyan.cli.options import (
    ConfigOption,
    EndpointOption,
    JsonOption,
    KeyFileOption,
    PassphraseFileOption,
    RegionOption,
    some_path,
)
from s3fs_banyan.cli.output import print_json, print_line
from s3fs_banyan.cli.settings import settings, take_store
from s3fs_banyan.config import ClientEncryption, Config
from s3fs_banyan.errors import ExitCode, UsageError
from s3fs_banyan.format.keyring import Secret
from s3fs_banyan.format.volume import VolumeDescriptor
from s3fs_banyan.observe.log import register_secret
from s3fs_banyan.remote.base import RemoteFileSystem
from s3fs_banyan.runtime import RealRuntime


def ask_passphrase(config: Config, volume: VolumeDescriptor | None) -> Config:
    """Return the configuration with a key: where there is none, a person is asked for it.

    Nobody is asked for the key of a plain volume, nor where no person is.
    """
    is_wanted = volume is not None and volume.is_encrypted and not config.encryption.is_given
    if not is_wanted or not sys.stdin.isatty():
        return config
    return with_passphrase(config, _ask("Passphrase", confirm=False))


def with_passphrase(config: Config, passphrase: str) -> Config:
    """Return the configuration with this passphrase."""
    register_secret(passphrase)
    encryption = config.encryption.model_copy(update={"passphrase": SecretStr(passphrase)})
    return config.model_copy(update={"encryption": encryption})


def new_secrets(given: ClientEncryption, what: str) -> list[Secret]:
    """Return what is to open a volume from now on: as given, or else as a person types it.

    Raises `UsageError` if there is nothing, or too little.
    """
    if not given.is_given:
        if not sys.stdin.isatty():
            raise UsageError(
                f"no key for the volume: give {what}, or run this at a terminal",
                exit_code=ExitCode.USAGE,
            )
        given = ClientEncryption(passphrase=SecretStr(_ask("New passphrase", confirm=True)))
    secrets = find_secrets(given)
    check_new_secrets(secrets)
    return secrets


def _ask(prompt: str, *, confirm: bool) -> str:
    typed: str = typer.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True)
    return typed


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    group = typer.Typer(
        help="Change what a volume says of itself: `s3fs-banyan volume rekey`.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
    )
    group.command("rekey")(rekey_volume)
    app.add_typer(group, name="volume")


def _with_present_key(store: RemoteFileSystem, volume: VolumeDescriptor, config: Config) -> Config:
    """Return the configuration with the key that opens the volume, before a new one is asked for.

    Raises `UsageError` if there is none, or if the volume is plain.
    """
    if not volume.is_encrypted:
        raise UsageError(
            f"volume {volume.volume_id} is not encrypted: mkfs --encrypt makes one",
            exit_code=ExitCode.KEY,
        )
    found = ask_passphrase(config, volume)
    unlock(store, volume, found.encryption)
    return found


def rekey_volume(
    store: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STORE]", help="s3://BUCKET/PREFIX or file:///DIRECTORY"),
    ] = None,
    new_passphrase_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File whose only line is a new passphrase.",
            parser=some_path,
        ),
    ] = None,
    new_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A new key file, 32 bytes or more.", parser=some_path),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Let the present keys go on opening the volume.")
    ] = False,
    config: ConfigOption = None,
    passphrase_file: PassphraseFileOption = None,
    key_file: KeyFileOption = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    json: JsonOption = False,
) -> None:
    """Give an encrypted volume another passphrase or key file; no data is written anew.

    The present key is needed. Mounts go on undisturbed; the next one needs the new key.

    Examples:

    * `s3fs-banyan volume rekey file:///srv/volume --passphrase-file old --new-passphrase-file new`
    * `s3fs-banyan volume rekey s3://backup/banyandb --new-key-file /etc/banyandb.key --keep`
    """
    found = settings(
        config,
        endpoint_url=endpoint_url,
        region=region,
        passphrase_file=passphrase_file,
        key_file=key_file,
    )
    url, _ = take_store(store or [], found, "s3fs-banyan volume rekey [STORE]", range(1))
    remote = connect(url, found)
    try:
        volume = read_volume(remote)
        found = _with_present_key(remote, volume, found)
        given = ClientEncryption(
            passphrase_file=new_passphrase_file and new_passphrase_file.absolute(),
            key_file=new_key_file and new_key_file.absolute(),
        )
        secrets = new_secrets(given, "--new-passphrase-file or --new-key-file")
        made = rekey(remote, volume, found.encryption, secrets, RealRuntime(), keep=keep)
    finally:
        remote.close()
    if json:
        print_json(
            {
                "store": url,
                "volume_id": volume.volume_id,
                "generation": made.generation,
                "keys": [slot.kind for slot in made.slots],
            }
        )
    else:
        kinds = ", ".join(slot.kind.replace("-", " ") for slot in made.slots)
        print_line(f"volume {volume.volume_id} opens with: {kinds}")
