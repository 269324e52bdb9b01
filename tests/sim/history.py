"""Every operation that anybody ever issued, as a tree: what a state may be is a question to it.

A node is named by the journal's chain checksum after its operation. A recovered state must be
the fold of the path from the root to a node that exists; which nodes are allowed depends on what
was promised (the *floor*), and the path must contain the floor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from s3fs_banyan.model import Operation
from tests.model.reference import ReferenceFS


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One issued operation, behind the one that it continues."""

    chain: int
    op_seq: int
    op: Operation | None
    parent: Step | None = field(repr=False)
    machine: str
    gone: bool = False

    def path(self) -> Iterator[Step]:
        """Give this step and those before it, newest first, without the root."""
        at: Step = self
        while at.parent is not None:
            yield at
            at = at.parent

    def covers(self, other: Step) -> bool:
        """Tell whether `other` is this step or one before it."""
        at: Step | None = self
        while at is not None and at.op_seq > other.op_seq:
            at = at.parent
        return at is other


class History:
    """All steps by chain checksum, and the fold of any of them."""

    def __init__(self, *, mode: int, created_ns: int) -> None:
        self._mode = mode
        self._created_ns = created_ns
        self.root = Step(0, 0, None, None, "")
        self.steps: dict[int, Step] = {0: self.root}
        self._known: tuple[Step, ReferenceFS] = (self.root, self._empty())

    def _empty(self) -> ReferenceFS:
        return ReferenceFS(mode=self._mode, created_ns=self._created_ns)

    def add(self, parent: int, chain: int, op_seq: int, op: Operation, *, machine: str,
            gone: bool) -> Step:  # fmt: skip
        """Note an operation that was appended to a journal.

        Two clones may append the same one: to whoever compares, that is one history.
        """
        known = self.steps.get(chain)
        if known is not None and known.parent is self.steps[parent] and known.gone == gone:
            return known
        step = Step(chain, op_seq, op, self.steps[parent], machine, gone)
        self.steps[chain] = step
        return step

    def find(self, chain: int, op_seq: int) -> Step:
        """Return the step of a state; fails if nobody ever issued such a history."""
        step = self.steps.get(chain)
        assert step is not None, f"operation {op_seq} ends a history that nobody issued"
        assert step.op_seq == op_seq, f"operation {op_seq} has the checksum of {step.op_seq}"
        return step

    def fold(self, step: Step) -> ReferenceFS:
        """Return the model's state after a step; the caller may change it."""
        known_step, known = self._known
        if step.covers(known_step):
            state = known.clone()
        else:
            known_step, state = self.root, self._empty()
        todo = []
        at = step
        while at is not known_step and at.parent is not None:
            todo.append(at)
            at = at.parent
        for found in reversed(todo):
            if found.op is not None:
                state.apply(found.op, found.op_seq, gone=found.gone)
        self._known = (step, state.clone())
        return state
