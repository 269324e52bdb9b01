"""The control socket: whatever is sent to it, the mount goes on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio

from s3fs_banyan.app import control

MOUNTPOINT = Path("/mnt/x")


async def _status(progress: Callable[[dict[str, object]], Awaitable[None]]) -> dict[str, object]:
    del progress
    return {"seq": 7}


@pytest.fixture
async def path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> AsyncIterator[Path]:
    """A served socket."""
    place = tmp_path / "sock"
    monkeypatch.setattr(control, "control_path", lambda mountpoint: place)
    await nursery.start(control.serve_control, MOUNTPOINT, {"status": _status})
    yield place
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 5000, b'{"command":' + b"[" * 5000, b"[]", b"7", b"null", b"\xff", b"{", b"",
        b'{"command": []}', b'{"command": {}}', b'{"command": "none"}', b'{"command": null}',
    ],
    ids=lambda line: repr(line[:20]),
)  # fmt: skip
async def test_a_line_that_is_no_request_ends_nothing(path: Path, line: bytes) -> None:
    """An exception here would end the daemon, and with it the mount."""
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(line + b"\n")
        answer = b"".join([part async for part in stream])
    assert not answer or "error" in json.loads(answer)
    assert [answer async for answer in control.ask(MOUNTPOINT, "status")] == [
        {"result": {"seq": 7}}
    ]
