"""What `status` tells: plain values, fit for JSON and for people."""

from __future__ import annotations

from pathlib import Path

from s3fs_banyan import __version__
from s3fs_banyan.app.engine import Engine
from s3fs_banyan.config import Config


def engine_status(engine: Engine, url: str, mountpoint: Path, config: Config) -> dict[str, object]:
    """Return the state of a mount. Secrets never appear."""
    state, ctx = engine.state, engine.ctx
    head = state.committed.head
    used, free = state.journal.segment_counts
    usage = engine.filesystem.statfs()
    cache = engine.cache.stats()
    # A mount that only reads learns of an absence by its reads.
    obstacle = state.obstacle or ("" if ctx.metrics.store_reachable.read() else "away")
    return {
        "version": __version__,
        "mountpoint": str(mountpoint),
        "store": url,
        "volume_id": ctx.volume.volume_id,
        "encrypted": ctx.volume.is_encrypted,
        "cache_dir": str(ctx.local.root),
        "durability": "remote" if ctx.settings.durability_remote else "local",
        "online": not obstacle,
        "obstacle": obstacle,
        "read_only": state.read_only_reason,
        "set_aside": state.set_aside,
        "writer": {"epoch": head.epoch, "pid": ctx.settings.pid, "host": ctx.settings.host},
        "usage": {"capacity": usage.capacity, "used": usage.used, "inodes": usage.inodes},
        "commit": {
            "seq": head.seq,
            "phase": engine.committer.phase,
            "interval_s": engine.committer.budget.stretched_s,
            "last_error": engine.committer.last_error,
            "dense_from": head.dense_from,
            "kept": list(head.kept),
        },
        "lag": {"bytes": state.lag_bytes, "seconds": round(engine.lag_s, 3)},
        "journal": {
            "operation": state.journal.last_seq,
            "synced": state.journal.synced_seq,
            "in_store": state.covered_op_seq,
            "backlog_bytes": state.journal.backlog_bytes,
            "dirty_max_bytes": ctx.settings.dirty_bytes_max,
            "segments_used": used,
            "segments_free": free,
            "disk_full": state.is_disk_full,
        },
        "local_cuts": {
            "count": state.base.head.number if state.base is not None else 0,
            "operation": state.base.head.op_seq if state.base is not None else 0,
            "base_packs_bytes": state.base_bytes,
        },
        "waiting_writers": state.waiting_writers,
        "cache": {
            "bytes": cache.bytes,
            "limit": cache.limit,
            "hits": cache.hits,
            "misses": cache.misses,
        },
        "reclaim": {"problem": engine.reclaimer.last_problem},
        "cost": _cost(engine, config),
        "latency": ctx.metrics.latency_summary(),
        "config": config.public_dict(),
    }


def _cost(engine: Engine, config: Config) -> dict[str, object]:
    """Return requests, bytes and money; estimates by the price table."""
    requests = engine.ctx.metrics.store_requests.by_kind()
    return {
        "currency": config.cost.currency,
        "requests": {kind: total._asdict() for kind, total in requests.items()},
        "storage": [one._asdict() for one in engine.stored.classes],
        "budget": {
            "requests_per_hour": config.budget.requests_per_hour,
            "interval_s": engine.committer.budget.stretched_s,
            "configured_s": config.commit.interval_s,
        },
    }
