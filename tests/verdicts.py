"""Who is told by what uploads were verified, for tests of the stores."""

from __future__ import annotations

from dataclasses import dataclass, field

from s3fs_banyan.remote.verification import How


@dataclass
class Verdicts:
    """Remembers by what uploads were verified."""

    seen: list[tuple[How, bool]] = field(default_factory=list)

    def verified(self, how: How, *, good: bool) -> None:
        self.seen.append((how, good))
