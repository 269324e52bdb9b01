"""How much lies in the store, by storage class, and what a month of it costs.

Packs and the inline data of commits, those that are dead and not yet reclaimed included: they
are billed. Deltas and checkpoints are not counted; they are small beside the data.
"""

from __future__ import annotations

from typing import NamedTuple

from s3fs_banyan.commit.classes import monthly_cost
from s3fs_banyan.commit.state import EngineState
from s3fs_banyan.prices import STANDARD


class StoredClass(NamedTuple):
    """What lies in one storage class; cost in the currency of the prices."""

    storage_class: str
    objects: int
    size_bytes: int
    living_bytes: int
    cost_per_month: float


class StoredByClass:
    """Counted once for each commit. One event loop."""

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._seq = -1
        self.classes: tuple[StoredClass, ...] = ()

    async def refresh(self) -> None:
        """Count again if a commit was applied since; safe to cancel."""
        seq = self._state.committed.head.seq
        if seq == self._seq:
            return
        self.classes = await self._state.ctx.runtime.in_thread(self._count)
        self._seq = seq
        metrics = self._state.ctx.metrics
        for one in self.classes:
            if one.storage_class not in metrics.class_bytes:
                continue  # written by a release that knows more classes
            metrics.class_bytes[one.storage_class].set(one.size_bytes)
            metrics.class_objects[one.storage_class].set(one.objects)
            metrics.class_cost[one.storage_class].set(one.cost_per_month)

    def _count(self) -> tuple[StoredClass, ...]:
        prices = self._state.ctx.settings.policy.price_of
        with self._state.committed.view() as view:
            found = {name or STANDARD: rest for name, *rest in view.stored()}
        classes = []
        for name in (*prices, *(name for name in found if name not in prices)):
            objects, size_bytes, living_bytes = found.get(name, (0, 0, 0))
            cost = 0.0
            if objects and name in prices:
                # By the mean size: what is billed at least is billed for each object.
                cost = objects * monthly_cost(prices[name], size_bytes // objects)
            classes.append(StoredClass(name, objects, size_bytes, living_bytes, cost))
        return tuple(classes)
