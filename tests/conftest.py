"""Fixtures and guards that every test shares."""

from __future__ import annotations

import functools
import gc
import logging
import os
from collections.abc import Iterator
from typing import Any

import botocore.loaders
import botocore.session
import pytest

from tests.lanes import make_scheduler
from tests.servers import AzuriteServer, GcsServer, MotoServer, SeaweedServer

PACKAGE_LOGGER = "s3fs_banyan"


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """One SeaweedFS server for all tests of this process; take a `bucket()` of it for each."""
    with SeaweedServer(tmp_path_factory.mktemp("seaweedfs")) as server:
        gc.freeze()
        yield server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoServer]:
    """One moto server for all tests of this process; take a `bucket()` of it for each."""
    with MotoServer(tmp_path_factory.mktemp("moto")) as server:
        gc.freeze()
        yield server


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzuriteServer]:
    """One azurite server for the whole run; take a `bucket()` of it for each test."""
    with AzuriteServer(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    """One fake-gcs-server for the whole run; take a `bucket()` of it for each test."""
    with GcsServer(tmp_path_factory.mktemp("fake-gcs-server")) as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def _own_environment() -> Iterator[None]:
    """Keep a developer's credentials and proxies away from the tests, and the reverse."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("AWS_", "AZURE_", "GOOGLE_")) or name.lower() in {
                "http_proxy",
                "https_proxy",
            }:
                patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_loader() -> Iterator[None]:
    """Read botocore's description of S3 once, not for every client: that is 80 ms of work."""
    with pytest.MonkeyPatch.context() as patch:
        once = functools.cache(botocore.loaders.create_loader)
        patch.setattr(botocore.session, "create_loader", once)
        yield


class _Warnings(logging.Handler):
    """Keeps the records of level WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.name}: {record.getMessage()}")


@pytest.fixture(autouse=True)
def _no_unexpected_log_warnings(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which the package warned, unless it is marked `allow_log_warnings`."""
    handler = _Warnings()
    logger = logging.getLogger(PACKAGE_LOGGER)
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    if handler.lines and request.node.get_closest_marker("allow_log_warnings") is None:
        pytest.fail("unexpected log records:\n" + "\n".join(handler.lines), pytrace=False)


@pytest.fixture(autouse=True)
def _collect_garbage() -> Iterator[None]:
    """Let what a test left open complain in that test and not in a later one."""
    yield
    gc.collect()


def pytest_collection_finish() -> None:
    """Take all that was imported out of the collector's sight: a collection is then cheap.

    The fixtures above do the same again, for the SDK's description of S3.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)  # without the plugin for parallel runs nobody asks
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:  # noqa: ANN401  # its
    """Let a parallel run (`--dist loadscope`) hand out what belongs together."""
    return make_scheduler(config, log) if config.getvalue("dist") == "loadscope" else None
