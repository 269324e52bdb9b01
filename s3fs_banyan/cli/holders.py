"""Who holds a mount point, from /proc; nothing here touches the mount itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from s3fs_banyan.kernel import mounted_paths

_SHOWN_MAX: Final = 5
_LINKS: Final = ("cwd", "root", "exe")


def holders_of(place: Path) -> list[str]:
    """Return `name (process 12: open file x)` for some of those who keep a mount point busy."""
    below = f"{place}/"
    found = [f"the mount on {path}" for path in _mounts_below(below)]
    for process in Path("/proc").iterdir():
        if len(found) >= _SHOWN_MAX:
            break
        if process.name.isdecimal() and (use := _use_of(process, str(place), below)):
            found.append(f"{_name_of(process)} (process {process.name}: {use})")
    return found


def _mounts_below(below: str) -> Iterator[str]:
    for path in mounted_paths():
        if path.startswith(below):
            yield path


def _use_of(process: Path, place: str, below: str) -> str:
    """Return what a process holds of a mount; empty if nothing, or if it cannot be seen."""
    try:
        for name in _LINKS:
            target = str((process / name).readlink())
            if target == place or target.startswith(below):
                return {"cwd": "works in it", "root": "has its root in it"}.get(
                    name, "runs from it"
                )
        for entry in (process / "fd").iterdir():
            target = str(entry.readlink())
            if target == place or target.startswith(below):
                return f"has {target} open"
        if f" {below}" in (process / "maps").read_text(encoding="utf-8", errors="replace"):
            return "has a file of it mapped"
    except OSError:  # it ended, it is a kernel thread, or it is not ours to look at
        return ""
    return ""


def _name_of(process: Path) -> str:
    try:
        return (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "?"
