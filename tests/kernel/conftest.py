"""Fixtures of the kernel tests: volumes and mounts that clean up behind themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.background import Background
from tests.kernel.mounts import Mount, Settings, Volume, file_volume, s3_volume
from tests.kernel.proxy import Proxy
from tests.servers import SeaweedServer

MakeMount = Callable[..., Mount]
MakeVolume = Callable[..., Volume]


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """A new volume in a directory."""
    return file_volume(tmp_path)


@pytest.fixture
def command(volume: Volume) -> Iterator[Background]:
    """The command on a new volume in a directory; mounts are gone after the test."""
    made = Background(volume)
    yield made
    made.close()


@pytest.fixture
def make_s3_volume(seaweed: SeaweedServer, tmp_path: Path) -> MakeVolume:
    """Make volumes in SeaweedFS."""

    def make(settings: Settings | None = None, endpoint_url: str = "") -> Volume:
        return s3_volume(seaweed, tmp_path, settings, endpoint_url=endpoint_url)

    return make


@pytest.fixture
def proxy(seaweed: SeaweedServer) -> Iterator[Proxy]:
    """A proxy before SeaweedFS that counts requests and can cut the line."""
    with Proxy(seaweed.endpoint_url) as running:
        yield running


@pytest.fixture
def make_mount() -> Iterator[MakeMount]:
    """Make mounts; all are gone after the test."""
    made: list[Mount] = []

    def make(volume: Volume, name: str = "mount", **options: object) -> Mount:
        mount = Mount(volume, name, **options)  # type: ignore[arg-type]  # passed on as they are
        made.append(mount)
        return mount

    yield make
    for mount in made:
        mount.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for all tests of a module; unmounted cleanly and mounted again at the end."""
    volume = file_volume(tmp_path_factory.mktemp("shared"))
    with Mount(volume) as mount:
        mount.start()
        yield mount
        mount.umount()


@pytest.fixture
def tree(shared: Mount, request: pytest.FixtureRequest) -> Path:
    """A new directory on the module's mount."""
    path = shared.path / f"t{abs(hash(request.node.nodeid)) % 10**12}"
    path.mkdir()
    return path
