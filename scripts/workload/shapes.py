"""The engines in numbers: files of a part, their sizes, the rhythm of flushes and merges.

Sizes and pauses are calibrated to a real server's counts at 10,000 measure points, 2,000
stream rows and 500 spans a second (docs/workload.md has the table). `interval_s` is the
engine's own flush timer and what a flush's duration is compared with; `pause_s` is how long
it really waits, since a finished merge cuts the timer short.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FileShape:
    """One data file of a part."""

    name: str
    share: float = 0.0
    """Share of the part's bytes; 0 is an empty file, as a constant column is."""
    held: bool = True
    """Whether the file stays open as long as the part lives."""
    late: bool = False
    """Tag files are opened after the second listing."""
    slice_bytes: int = 0
    """Size of writes that bypass the buffer; 0 goes through it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirShape:
    """One directory of a part: the core, or an ordered index of a trace part."""

    parent: str = ""
    files: tuple[FileShape, ...]
    atomics: tuple[str, ...]
    """Small files written through a `.tmp`; the last one makes the directory a part."""
    probe: str = ""
    """A name looked up at opening that is never there."""
    sync_self: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineShape:
    """One storage engine."""

    catalog: str
    group: str
    interval_s: float
    pause_s: tuple[float, float]
    flush_bytes: int
    rows: int
    fan_in: int
    dirs: tuple[DirShape, ...]
    element_index: bool = False
    series_commit_s: float
    series_bytes: int


def _family(name: str, share: float) -> tuple[FileShape, ...]:
    return (
        FileShape(name=f"{name}.tfm", share=share * 0.2, late=True),
        FileShape(name=f"{name}.tf", share=share * 0.8, late=True),
    )


MEASURE = EngineShape(
    catalog="measure",
    group="metrics_minute",
    interval_s=5.0,
    pause_s=(1.1, 2.2),
    flush_bytes=450 << 10,
    rows=9000,
    fan_in=8,
    dirs=(
        DirShape(
            files=(
                FileShape(name="meta.bin", share=0.0004, held=False),
                FileShape(name="primary.bin", share=0.25, slice_bytes=32 << 10),
                FileShape(name="timestamps.bin"),
                FileShape(name="fv.bin", share=0.30),
                *_family("default", 0.45),
            ),
            atomics=("tag.type", "metadata.json"),
            probe="smeta.bin",
        ),
    ),
    series_commit_s=6.0,
    series_bytes=20 << 10,
)

STREAM = EngineShape(
    catalog="stream",
    group="sw_log",
    interval_s=1.0,
    pause_s=(0.5, 0.85),
    flush_bytes=92 << 10,
    rows=700,
    fan_in=15,
    dirs=(
        DirShape(
            files=(
                FileShape(name="meta.bin", share=0.001, held=False),
                FileShape(name="primary.bin", share=0.13, slice_bytes=16 << 10),
                FileShape(name="timestamps.bin", share=0.05),
                *_family("searchable", 0.5),
                FileShape(name="searchable.tff", late=True),
                *_family("data", 0.319),
                FileShape(name="data.tff", late=True),
            ),
            atomics=("tag.type", "metadata.json"),
            probe="smeta.bin",
        ),
    ),
    element_index=True,
    series_commit_s=1.5,
    series_bytes=12 << 10,
)


def _trace_core() -> DirShape:
    tags: list[FileShape] = []
    for index in range(6):
        share = 0.0 if index == 0 else 0.02
        tags.append(FileShape(name=f"tag{index}.t", share=share, late=True))
        tags.append(FileShape(name=f"tag{index}.tm", share=0.003, late=True))
    return DirShape(
        files=(
            FileShape(name="meta.bin", share=0.001, held=False),
            FileShape(name="primary.bin", share=0.06),
            FileShape(name="spans.bin", share=0.55, slice_bytes=24 << 10),
            *tags,
        ),
        atomics=("tag.type", "traceID.filter", "metadata.json"),
    )


def _trace_rule(rule: str, tags: tuple[str, str]) -> DirShape:
    files: list[FileShape] = []
    for index, tag in enumerate(tags):
        files.append(FileShape(name=f"{tag}.td", share=0.02, late=True))
        files.append(FileShape(name=f"{tag}.tm", share=0.002, late=True))
        files.append(FileShape(name=f"{tag}.tf", share=0.003 * index, late=True))
    return DirShape(
        parent=f"sidx/{rule}",
        files=(
            FileShape(name="meta.bin", share=0.001, held=False),
            FileShape(name="primary.bin", share=0.02),
            FileShape(name="keys.bin", share=0.02),
            FileShape(name="data.bin", share=0.05),
            *files,
        ),
        atomics=("manifest.json",),
        sync_self=True,
    )


TRACE = EngineShape(
    catalog="trace",
    group="sw_trace",
    interval_s=1.0,
    pause_s=(0.65, 1.15),
    flush_bytes=58 << 10,
    rows=260,
    fan_in=15,
    dirs=(
        _trace_core(),
        _trace_rule("start_time", ("status", "layer")),
        _trace_rule("duration", ("endpoint", "instance")),
    ),
    series_commit_s=6.0,
    series_bytes=8 << 10,
)

ENGINES = {shape.catalog: shape for shape in (MEASURE, STREAM, TRACE)}

ELEMENT_COMMIT_S = 0.8
ELEMENT_BYTES = 250 << 10
PROPERTY_BYTES = 12 << 10
PROPERTY_S = 1.0
FADVISE_PER_CHUNK = 14

MEASURED_PER_S: dict[str, float] = {
    "fsync": 195,
    "fsync file": 156,
    "fsync dir": 39,
    "create": 140,
    "create bluge": 32,
    "open file": 198,
    "open dir": 42,
    "rename": 27,
    "unlink": 175,
    "rmdir": 22,
    "mkdir": 11,
    "statfs": 11,
    "mmap": 8,
    "flock": 40,
    "stat": 142,
    "stat ENOENT": 49,
    "getdents": 84,
    "write": 507,
    "write bytes": 3.7 * (1 << 20),
    "read": 444,
    "read bytes": 1.6 * (1 << 20),
    "pread": 630,
    "pread bytes": 0.6 * (1 << 20),
    "fadvise": 5980,
    "publish measure": 1.39,
    "publish stream": 3.15,
    "publish trace": 2.19,
}
"""The real server's counts per second, for the report."""
