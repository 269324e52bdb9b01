"""The tables of `status`: what a person must see first is on top and in colour."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from s3fs_banyan.cli.output import console, printable, seconds_text, size_text, time_text

_LAG_BAD_INTERVALS = 4
_OBSTACLES = {
    "away": "OFFLINE: the store does not answer; nothing is published, and reads of what is not "
    "cached wait",
    "refused": "REFUSED: the store refuses what this mount asks for; nothing is published",
    "local": "HELD UP: this machine cannot make ready what is to be sent; nothing is published",
}


def show_status(found: dict[str, Any]) -> None:
    """Print a mount's state for people."""
    out = console()
    for style, text in troubles(found):
        out.print(printable(text), style=style, markup=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(found):
        table.add_row(name, printable(value))
    out.print(table)
    if found.get("cost"):
        out.print(_requests(found["cost"]))
        out.print(_storage(found["cost"]))
    if found.get("latency"):
        out.print(_latencies(found["latency"]))


def troubles(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (style, line) for everything that a person should look at."""
    lines: list[tuple[str, str]] = []
    if not found["online"]:
        obstacle = found.get("obstacle", "away")  # a daemon of an earlier release says none
        lines.append(("bold red", _OBSTACLES.get(obstacle, _OBSTACLES["away"])))
    if found["read_only"]:
        lines.append(("bold red", f"READ-ONLY: {found['read_only']}"))
    if found["set_aside"]:
        lines.append(
            ("bold red", f"SET ASIDE: changes never published are in {found['set_aside']}")
        )
    if found["commit"]["last_error"]:
        follows = found.get("role") == "follower"
        what = "the volume cannot be followed:" if follows else "the commit waits at"
        lines.append(("red", f"{what} {found['commit']['last_error']}"))
    if found.get("role") == "follower":
        return lines
    if found["journal"]["disk_full"]:
        lines.append(("bold red", "DISK FULL: the local disk has no room for the journal"))
    if found["waiting_writers"]:
        lines.append(("yellow", f"{found['waiting_writers']} writers wait for room"))
    if found["lag"]["seconds"] > _LAG_BAD_INTERVALS * found["commit"]["interval_s"]:
        lines.append(
            ("yellow", f"the store is {seconds_text(found['lag']['seconds'])} behind this mount")
        )
    budget = found.get("cost", {}).get("budget")
    if budget and budget["interval_s"] > budget["configured_s"]:
        stretched = seconds_text(budget["interval_s"])
        lines.append(("yellow", f"the budget of requests stretches commits to every {stretched}"))
    if found["reclaim"]["problem"]:
        lines.append(("yellow", f"nothing is reclaimed: {found['reclaim']['problem']}"))
    return lines


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    commit, cache, usage, writer = (found[k] for k in ("commit", "cache", "usage", "writer"))
    reads = cache["hits"] + cache["misses"]
    share = f", {100 * cache['hits'] / reads:.0f} % hits" if reads else ""
    used = f"{size_text(usage['used'])} of {size_text(usage['capacity'])}"
    follows = found.get("role") == "follower"
    manner = "read-only" if follows else f"durability {found['durability']}"
    return [
        ("store", f"{found['store']} (volume {found['volume_id']})"),
        ("mounted on", f"{found['mountpoint']}, {manner}"),
        ("local directory", found["cache_dir"]),
        ("daemon", f"process {writer['pid']}, version {found['version']}"),
        ("used", f"{used}, {usage['inodes']} inodes"),
        *(_follower_rows(commit, writer) if follows else _writer_rows(found)),
        ("cache", f"{size_text(cache['bytes'])} of {size_text(cache['limit'])}{share}"),
    ]


def _follower_rows(commit: dict[str, Any], writer: dict[str, Any]) -> list[tuple[str, str]]:
    made = time_text(commit["time_ns"])
    return [("commit", f"{commit['seq']} (epoch {writer['epoch']}), made {made} UTC")]


def _writer_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    commit, journal, lag = found["commit"], found["journal"], found["lag"]
    backlog = f"{size_text(journal['backlog_bytes'])} of {size_text(journal['dirty_max_bytes'])}"
    segments = f"{journal['segments_used']} segments used, {journal['segments_free']} free"
    doing = f"{commit['phase'] or 'idle'}, every {seconds_text(commit['interval_s'])} at most"
    return [
        ("commit", f"{commit['seq']} (epoch {found['writer']['epoch']}), {doing}"),
        ("not in the store", f"{size_text(lag['bytes'])}, oldest {seconds_text(lag['seconds'])}"),
        ("journal", f"{backlog} backlog, {segments}"),
        *_local_cut_rows(found["local_cuts"]),
    ]


def _local_cut_rows(cuts: dict[str, Any]) -> list[tuple[str, str]]:
    """Only while there are any: they stand for a store that is away."""
    if not cuts["count"]:
        return []
    kept = size_text(cuts["base_packs_bytes"])
    return [("local cuts", f"{cuts['count']} since the last commit, {kept} kept for the store")]


def _requests(cost: dict[str, Any]) -> Table:
    """Show what was asked of the store since the mount began, by how it is billed."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("requests")
    for name in ("count", "sent", "received", f"{cost['currency']} (estimate)"):
        table.add_column(name, justify="right")
    for kind, one in cost["requests"].items():
        sent, received = size_text(one["sent_bytes"]), size_text(one["received_bytes"])
        table.add_row(kind, f"{one['requests']:.0f}", sent, received, f"{one['cost']:.4f}")
    return table


def _storage(cost: dict[str, Any]) -> Table:
    """Show what lies in the store, by class; classes that hold nothing are left out."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("storage class")
    for name in ("objects", "stored", "alive", f"{cost['currency']} a month (estimate)"):
        table.add_column(name, justify="right")
    for one in cost["storage"]:
        if one["objects"]:
            stored, alive = size_text(one["size_bytes"]), size_text(one["living_bytes"])
            money = f"{one['cost_per_month']:.4f}"
            table.add_row(one["storage_class"], str(one["objects"]), stored, alive, money)
    return table


def _latencies(latency: dict[str, dict[str, float]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("latency")
    for name in ("count", "p50", "p99"):
        table.add_column(name, justify="right")
    for name, one in latency.items():
        p50, p99 = seconds_text(one["p50_s"]), seconds_text(one["p99_s"])
        table.add_row(name, f"{one['count']:.0f}", p50, p99)
    return table
