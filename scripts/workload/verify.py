"""Check a volume against the log of the load that ran on it.

The tree must be explainable as one prefix of the operations, where those that overlapped in
time may come in either order. Each name and each file size says of some operations that
they are visible and of others that they are not. Then

* no operation that began after another, invisible one had been answered may be visible
  (there is a cut);
* no operation that the promise covers may be invisible (`answered`: all that were answered;
  `synced`: all answered before the begin of the last fsync that was answered);
* no operation may be half done, unless it is an append;
* every byte that is there is the one written; names that share a file share its inode;
* the database would start without deleting or refusing anything it should keep (`rules`).
"""

from __future__ import annotations

from pathlib import Path

from workload.content import Content
from workload.oplog import History, Operation, read_log
from workload.rules import check_rules
from workload.timeline import Seen, State, Timelines, matching, observe, unfold

_CHUNK = 1 << 20
_SHOWN = 60


class Verifier:
    """One check; `violations` fills, each a sentence."""

    def __init__(self, root: Path, history: History) -> None:
        self.root = root
        self.history = history
        self.content = Content(history.seed)
        self.lines: Timelines = unfold(history)
        self.seen: dict[str, Seen] = observe(root)
        self.violations: list[str] = []
        self.visible: set[Operation] = set()
        self.invisible: set[Operation] = set()
        self.bytes_checked = 0
        self._states: dict[str, State] = {}

    def check_names(self) -> None:
        """Find for every name the states that explain it, and mark operations by them."""
        for path in sorted({*self.lines.names, *self.seen}):
            seen = self.seen.get(path)
            states = self.lines.states(path)
            found = matching(self.root, path, seen, self.lines, self.content)
            if not found:
                self.violations.append(self._unexplained(path, seen))
                continue
            for index, (_, operation) in enumerate(states):
                if operation is not None and index <= found[0]:
                    self.visible.add(operation)
                elif operation is not None and index > found[-1]:
                    self.invisible.add(operation)
            candidates = {states[index][0] for index in found}
            if len(candidates) == 1:
                self._states[path] = candidates.pop()

    def _unexplained(self, path: str, seen: Seen | None) -> str:
        if path not in self.lines.names:
            return f"{path}: never made by this load"
        if seen is None:
            return f"{path}: missing, though it was there at the start and never removed"
        kind = "a directory" if seen.is_dir else f"a file of {seen.size} bytes"
        return f"{path}: {kind} that no logged state of this name explains"

    def check_sizes(self) -> None:
        """Mark appends by the sizes of files; a file is never longer than what was written."""
        for path, fid in self._states.items():
            if not isinstance(fid, int) or fid in self.lines.truncated:
                continue
            size = self.seen[path].size
            base = self.lines.base_size.get(fid, 0)
            longest = base
            for offset, length, operation in self.lines.extents.get(fid, []):
                longest = max(longest, offset + length)
                if size > offset:
                    self.visible.add(operation)
                if size < offset + length:
                    self.invisible.add(operation)
            if not base <= size <= longest:
                self.violations.append(f"{path}: {size} bytes, {base} to {longest} are possible")

    def check_bytes(self) -> None:
        """Read every file and compare every byte."""
        done: dict[int, int] = {}
        for path, fid in self._states.items():
            if not isinstance(fid, int):
                continue
            seen = self.seen[path]
            if done.setdefault(fid, seen.ino) != seen.ino:
                self.violations.append(f"{path}: a name of a linked file with another inode")
            known = self.lines.known(fid, seen.size)
            with (self.root / path).open("rb", buffering=0) as stream:
                offset = 0
                while data := stream.read(_CHUNK):
                    expected = self.content.expect(known, offset, len(data))
                    if data != expected:
                        at = offset + _first_difference(data, expected)
                        self.violations.append(f"{path}: wrong byte at {at} of {seen.size}")
                        break
                    offset += len(data)
            self.bytes_checked += offset
            if offset < seen.size:
                self.violations.append(f"{path}: reads end at {offset}, its size is {seen.size}")

    def check_cut(self) -> None:
        """There must be one moment that separates what is visible from what is not."""
        half = [op for op in self.visible & self.invisible if op.verb != "append"]
        self.violations += [f"half done: {op}" for op in sorted(half, key=lambda op: op.begin)]
        if not self.visible:
            return
        latest = max(self.visible, key=lambda op: op.begin)
        for op in sorted(self.invisible, key=lambda op: op.end):
            if op.end < latest.begin:
                self.violations.append(f"order: {op} is not visible, but the later {latest} is")

    def check_floor(self, at_least: str) -> int:
        """Everything that the promise covers must be visible; returns the promise's line."""
        if at_least == "none":
            return 0
        floor = 1 << 61
        if at_least == "synced":
            syncs = [op for op in self.history.operations if op.verb == "fsync" and op.answered]
            floor = max((op.begin for op in syncs), default=0)
        for op in sorted(self.invisible, key=lambda op: op.end):
            if op.end < floor:
                self.violations.append(f"lost: {op} was {at_least}")
        return floor

    def run(self, at_least: str) -> None:
        """Make all checks."""
        self.check_names()
        self.check_sizes()
        self.check_bytes()
        self.check_cut()
        self.check_floor(at_least)
        self.violations += check_rules(self.root, self.seen, self.lines)

    def summary(self, at_least: str) -> str:
        """Return the counts in one line."""
        files = sum(not seen.is_dir for seen in self.seen.values())
        unanswered = sum(not op.answered for op in self.history.operations)
        return (
            f"{len(self.violations)} violations; {files} files, {len(self.seen) - files} "
            f"directories, {self.bytes_checked} bytes compared; "
            f"{len(self.history.operations)} operations, {unanswered} unanswered, "
            f"{len(self.visible)} visible, {len(self.invisible)} not; promise: {at_least}"
        )


def _first_difference(left: bytes, right: bytes) -> int:
    shared = min(len(left), len(right))
    return next((at for at in range(shared) if left[at] != right[at]), shared)


def verify(root: Path, log_path: Path, *, at_least: str) -> int:
    """Check a volume and print what was found; returns the exit code."""
    verifier = Verifier(root, read_log(log_path))
    verifier.run(at_least)
    for line in verifier.violations[:_SHOWN]:
        print(line)
    hidden = len(verifier.violations) - _SHOWN
    if hidden > 0:
        print(f"and {hidden} more")
    print(verifier.summary(at_least))
    return 1 if verifier.violations else 0
