"""kill -9 in the middle of uploads: the next life goes on with the parts that are missing."""

from __future__ import annotations

import os

from tests.kernel.conftest import MakeMount, MakeVolume
from tests.kernel.proxy import Proxy

MIB = 1 << 20
DATA = 40 * MIB
PART = 5 * MIB
UPLOADS = 2
KILLS = 2
LINE = 16 * MIB
"""Bytes a second of one connection."""
OTHER = 4 * MIB
"""Commits, checkpoints and headers beside the packs."""


def test_killed_uploads_go_on_with_the_missing_parts(
    make_s3_volume: MakeVolume, make_mount: MakeMount, proxy: Proxy
) -> None:
    """Nothing but the parts under way at each death is sent twice: on a slow line an upload must
    come to an end at last, however often the daemon dies."""
    volume = make_s3_volume({"commit": {"interval": "1s"}}, proxy.endpoint_url)
    remote = volume.settings["storage"]["remote"]
    assert isinstance(remote, dict)
    remote |= {"multipart": "always", "part_size": f"{PART >> 20}MiB", "uploads": UPLOADS}
    mount = make_mount(volume).start()
    data = os.urandom(DATA)
    proxy.slow(LINE)
    begin = proxy.sent_bytes()
    with (mount.path / "large").open("wb") as file:
        file.write(data)
        os.fsync(file)
    for number in range(KILLS):
        enough = begin + (number + 1) * DATA // (KILLS + 2)
        mount.wait_until(lambda: proxy.sent_bytes() > enough, 60, "nothing was sent")  # noqa: B023
        mount.kill()
        mount.start()
    mount.sync()
    sent = proxy.sent_bytes() - begin
    assert any("partNumber=" in line for line in proxy.requests("PUT")), "nothing went in parts"
    assert DATA < sent < DATA + KILLS * UPLOADS * PART + OTHER
    proxy.slow(0)
    mount.umount()
    mount.wipe_cache()
    mount.start("--takeover")
    assert (mount.path / "large").read_bytes() == data
    mount.umount()
    volume.check()
