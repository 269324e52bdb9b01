"""How many transfers of one process run at once: parts of several packs share one bound.

The caller's own thread gets the results, in the order in which they are ready, so whoever keeps
a record of what was done needs no lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Generic, NamedTuple, Protocol, TypeVar

from s3fs_banyan.errors import BanyanFSError

T = TypeVar("T")


class Transfers(Protocol):
    """Who carries out transfers for callers in any number of threads."""

    def results(self, calls: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Carry out all calls and yield each result when it is there.

        After a call that failed no further one is begun; those that run are waited for and their
        results yielded, then the first error is raised. Blocks; ends when the calls end.
        """
        ...


class InlineTransfers:
    """One after the other in the caller's thread: the simulation, tools, tests."""

    def results(self, calls: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Yield the result of each call, in order."""
        for call in calls:
            yield call()


class PooledTransfers:
    """In threads of its own, first come, first served."""

    def __init__(self, at_once: int) -> None:
        """At most `at_once` calls run at the same time."""
        self._executor = ThreadPoolExecutor(at_once, thread_name_prefix="transfer")

    def results(self, calls: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Yield the results as they come; see `Transfers`."""
        failures: list[BaseException] = []
        futures = [self._executor.submit(_unless_failed, failures, call) for call in calls]
        try:
            for future in as_completed(futures):
                if (result := future.result()) is not None:
                    yield result.value
        finally:
            for future in futures:
                future.cancel()
        if failures:
            raise failures[0]

    def close(self) -> None:
        """Wait for what runs and end the threads."""
        self._executor.shutdown(cancel_futures=True)


class _Result(NamedTuple, Generic[T]):
    value: T


def _unless_failed(failures: list[BaseException], call: Callable[[], T]) -> _Result[T] | None:
    """Carry out a call, unless one before it has failed; note if it fails."""
    if failures:
        return None
    try:
        return _Result(call())
    except (BanyanFSError, OSError) as error:  # raised where the results are gathered
        failures.append(error)
        return None
