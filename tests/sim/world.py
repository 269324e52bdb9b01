"""A simulated world: machines, a store, lives of daemons, disasters, and what they may do.

machine    a local directory: a simulated disk, some real files that anybody may lose
life       one run of the engine on a machine, from recovery to its end
promise    what answered calls said; the next state has to contain it
"""

from __future__ import annotations

import gc
import hashlib
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import ClassVar
from unittest import mock

import trio
import trio.testing

from s3fs_banyan.app.engine import Engine, open_engine
from s3fs_banyan.commit import space
from s3fs_banyan.commit.classes import ClassPolicy
from s3fs_banyan.commit.context import Context, EngineSettings
from s3fs_banyan.commit.local import LocalDirectory
from s3fs_banyan.commit.sealing import Sealing
from s3fs_banyan.commit.state import EngineState
from s3fs_banyan.commit.worker import InlineWorker
from s3fs_banyan.data.blocks import MemoryBlockCache
from s3fs_banyan.errors import BanyanFSError, Fenced, InputOutput, StoreError
from s3fs_banyan.format.commit import CommitFooter
from s3fs_banyan.format.encryption import Cipher
from s3fs_banyan.format.volume import VolumeDescriptor
from s3fs_banyan.journal.log import Appended
from s3fs_banyan.journal.segment import JournalSettings
from s3fs_banyan.model import BeginEpoch, Cut, Operation, Reap
from s3fs_banyan.observe.metrics import Metrics
from s3fs_banyan.remote.memory import MemoryStore
from s3fs_banyan.vfs.filesystem import FileSystem
from tests.model.reference import ReferenceFS
from tests.sim.classes import CLASSES
from tests.sim.clients import Client
from tests.sim.dials import Dials
from tests.sim.disk import SimDisk, SimDiskHandle
from tests.sim.history import History, Step
from tests.sim.invariants import check_rows, check_state, check_store, check_tree
from tests.sim.runtime import BASE_NS, Life, SimCrash, SimRuntime, now_s, wall_ns
from tests.sim.sqlite import SimVFS
from tests.sim.store import SimStore, StoreFaults, StoreHandle

_VOLUME = VolumeDescriptor(volume_id="5" * 32, created_ns=BASE_NS, pack_bytes=128 << 10)
_CIPHER = Cipher(bytes(range(32)), bytes.fromhex(_VOLUME.volume_id))


@dataclass(slots=True, kw_only=True)
class Plan:
    """How one life goes and ends."""

    seconds: float
    end: str
    """`crash`, `power`, `stop`, `drain`, `lost`; what is done with the machine afterwards."""
    crash_at: str = ""
    crash_passes: int = 1
    quiet: bool = False
    """No clients: recovery, services, and the end."""
    running: trio.Event = field(default_factory=trio.Event)
    until: trio.Event | None = None
    """Go on until this is set, instead of `seconds`."""


@dataclass(slots=True, eq=False)
class Machine:
    """A local directory and what was promised on it."""

    name: str
    root: Path
    disk: SimDisk
    vfs: SimVFS
    boot: int
    writer: bytes
    last: Step
    """The last operation that was answered here."""
    synced: Step
    """What survives a power cut."""
    power_was_cut: bool = False
    fences: set[int] = field(default_factory=set)
    """Journal checksums of the epochs that were begun in its journal."""

    @property
    def local(self) -> LocalDirectory:
        return LocalDirectory(root=self.root)


class MountFailed(Exception):
    """A life that ended before it served anything, for a reason that is allowed."""


class World:
    """Everything that outlives a daemon. One `trio.run`, one seed."""

    newest: ClassVar[World | None] = None
    """The world made last, for showing its events after a failure."""

    def __init__(self, seed: int | str, dials: Dials, scratch: Path) -> None:
        World.newest = self
        self.seed = seed
        self.dials = dials
        self._scratch = scratch
        self.cipher = _CIPHER if dials.encrypted else None
        self.history = History(mode=_VOLUME.root_mode, created_ns=_VOLUME.created_ns)
        self.events: list[str] = []
        self._digest = hashlib.blake2b(digest_size=16)
        self.head = self.history.root
        self.acked = self.history.root
        """The newest operation that was promised to be in the store."""
        self.store = SimStore(
            now_s=now_s,
            rng=self.rng("store"),
            on_event=self.note,
            on_commit=self._commit_landed,
            faults=dials.faults,
            objects=MemoryStore(clock=wall_ns),
            cipher=self.cipher,
        )
        self._machines = 0
        self._lives = 0
        self.living = 0
        self.passed: dict[str, int] = {}
        self.calls = 0
        self.commits = 0

    def rng(self, name: str) -> Random:
        """Return a generator of its own: one more draw elsewhere does not shift it."""
        return Random(f"{self.seed}/{name}")

    def note(self, event: str) -> None:
        """Note a decision or an effect; equal seeds must note equal events."""
        self.events.append(event)
        self._digest.update(event.encode() + b"\n")

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    # --- the store's side ----------------------------------------------------------------

    def _commit_landed(self, footer: CommitFooter) -> None:
        """A log object is there: it must continue what was promised."""
        self.commits += 1
        if footer.is_fence:
            return
        step = self.history.find(footer.chain, footer.op_seq)
        if step.covers(self.head):
            self.head = step
            return
        assert self.head.covers(step), f"commit {footer.seq} forgets what an earlier one held"

    def promise_remote(self, step: Step) -> None:
        """Somebody was told that `step` is in the store.

        Marks change nothing: the one of a local cut may lie behind a commit that holds all.
        """
        while isinstance(step.op, Cut | BeginEpoch) and step.parent is not None:
            step = step.parent
        assert self.head.covers(step), (
            f"operation {step.op_seq} was said to be in the store, which ends at {self.head.op_seq}"
        )
        self.acked = step if step.covers(self.acked) else self.acked

    def calm(self) -> None:
        """Let all faults end; what is still on its way lands now."""
        self.store.outage_until_s = self.store.outage_every_s = 0.0
        self.store.faults = self.dials.faults = StoreFaults()
        self.dials.sync_fails = self.dials.crash_chance = 0.0
        self.store.settle(all_of_them=True)

    def check_store(self) -> None:
        """Check the volume from the store alone; a machine lost now loses nothing promised."""
        assert self.head.covers(self.acked)
        checked = check_store(self.store.objects, _VOLUME, self.history, self._scratch, self.cipher)
        self.note(f"store checked: {checked} commits")

    # --- machines ------------------------------------------------------------------------

    def new_machine(self) -> Machine:
        """Set up a machine with an empty disk."""
        self._machines += 1
        name = f"m{self._machines}"
        root = self._scratch / name
        disk = SimDisk(root, on_event=lambda event: self.note(f"{name} {event}"))
        return self._machine(name, root, disk)

    def _machine(self, name: str, root: Path, disk: SimDisk) -> Machine:
        writer = self.rng(f"writer {name}").randbytes(16)
        vfs, start = SimVFS(disk), self.history.root
        LocalDirectory(root=root).make()
        return Machine(name, root, disk, vfs, 1, writer, start, start)

    def clone_machine(self, machine: Machine) -> Machine:
        """Copy a machine's disk, identity and all, as a virtual machine's snapshot does."""
        self._machines += 1
        name = f"m{self._machines}"
        root = self._scratch / name
        shutil.copytree(machine.root, root)
        disk = machine.disk.clone(root)
        disk.on_event = lambda event: self.note(f"{name} {event}")
        other = self._machine(name, root, disk)
        other.boot, other.writer = 1000 + self._machines, machine.writer
        other.last, other.synced = machine.last, machine.synced
        other.fences, other.power_was_cut = set(machine.fences), True
        return other

    def power_cut(self, machine: Machine) -> None:
        """The power goes: unsynced sectors and names, and all that was never to be trusted."""
        rng = self.rng(f"power {machine.name} {machine.boot}")
        machine.boot += 1
        machine.power_was_cut = True
        machine.disk.power_cut(rng)
        live = machine.local.live
        for path in (live, live.with_name("live.db-wal")):
            if path.exists():
                _spoil(path, rng)
        last_cut = machine.root / "last-cut"
        if last_cut.exists() and rng.random() < 0.3:
            last_cut.write_bytes(b"")  # renamed into place, never synced
        self.note(f"power cut of {machine.name}")

    def lose(self, machine: Machine) -> None:
        """The machine is gone for ever."""
        shutil.rmtree(machine.root)
        self.note(f"{machine.name} is lost")

    # --- lives ---------------------------------------------------------------------------

    async def live(self, machine: Machine, plan: Plan) -> Life:
        """Run one life and return what became of it.

        Raises `MountFailed` if it was not mounted, `AssertionError` for a broken promise.
        """
        self._lives += 1
        life = Life(f"life{self._lives}@{machine.name}")
        life.crash_at, life.crash_passes = plan.crash_at, plan.crash_passes
        self.note(f"{life.name} begins, to end by {plan.end} {plan.crash_at}")
        self.living += 1
        if not self.dials.sync_failures_stay:
            machine.disk.retry_dropped()
        failure: list[BaseException] = []
        try:
            mounted = Mounted(self, machine, life, plan)
            try:
                await mounted.run()
            except* SimCrash:
                self.note(f"{life.name} died")
            except* (StoreError, Fenced, OSError) as group:
                failure += group.exceptions
        finally:
            self.living -= 1
            life.dead = True
        if failure and mounted.served:
            raise failure[0]
        why = repr(failure[0]) if failure else ""
        failure.clear()
        gc.collect()  # databases of a dead life are closed; an open one would lock out the next
        if why:
            self.note(f"{life.name} was not mounted")
            raise MountFailed(why)
        return life


def _spoil(path: Path, rng: Random) -> None:
    luck, data = rng.random(), path.read_bytes()
    if luck < 0.3:
        path.unlink()
    elif luck < 0.5:
        path.write_bytes(data[: rng.randint(0, len(data))])
    elif luck < 0.8 and data:
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + rng.randbytes(min(4096, len(data) - at)) + data[at + 4096 :])


class Mounted:
    """One life: the engine with the model beside it."""

    def __init__(self, world: World, machine: Machine, life: Life, plan: Plan) -> None:
        self.world = world
        self.machine = machine
        self.life = life
        self.plan = plan
        self.rename_lock = trio.Lock()
        self.issued: dict[int, Operation] = {}
        self.served = False
        self._rng = world.rng(life.name)
        self._step = machine.last
        self._engine: Engine | None = None
        self._line_s = 0.0
        self._model: ReferenceFS | None = None

    @property
    def engine(self) -> Engine:
        assert self._engine is not None
        return self._engine

    @property
    def fs(self) -> FileSystem:
        return self.engine.filesystem

    @property
    def state(self) -> EngineState:
        return self.engine.state

    @property
    def model(self) -> ReferenceFS:
        assert self._model is not None
        return self._model

    # --- from recovery to the end --------------------------------------------------------

    async def run(self) -> None:
        """Recover, check, serve, end."""
        world, dials = self.world, self.world.dials
        alone = world.living == 1
        runtime = SimRuntime(
            self.life,
            rng=world.rng(f"{self.life.name} runtime"),
            boot_id=f"{self.machine.name} boot {self.machine.boot}",
            on_event=world.note,
            crash_chance=dials.crash_chance,
        )
        ctx = self._context(runtime)
        ctx.local.tidy_outbox()
        proved: set[str] = set()
        cache = MemoryBlockCache(256 << 10, block_bytes=16 << 10)
        try:
            async with open_engine(
                ctx,
                make_worker=lambda cache: InlineWorker(
                    lambda job: Sealing(
                        job,
                        disk=ctx.disk,
                        store=ctx.store,
                        cache=cache,
                        cipher=ctx.cipher,
                        clock=self._line_clock,
                        proved=proved,
                    ),
                    runtime,
                ),
                cache=cache,
                writer=self.machine.writer,
            ) as engine:
                self._engine = engine
                self.life.on_death = self._forget_transaction
                self._recovered(alone=alone)
                async with trio.open_nursery() as nursery:
                    await self._serve(nursery)
                    nursery.cancel_scope.cancel()
        finally:
            for name, count in runtime.passed.items():
                world.passed[name] = world.passed.get(name, 0) + count

    def _line_clock(self) -> float:
        """The clock by which a sealing judges how fast the line is."""
        self._line_s += self.world.dials.transfer_s
        return self._line_s

    def _forget_transaction(self) -> None:
        """A daemon that dies does not commit live.db's open transaction."""
        self.state.broken = True

    def _context(self, runtime: SimRuntime) -> Context:
        world, dials, life = self.world, self.world.dials, self.life
        rng = world.rng(f"{life.name} disk")
        disk = SimDiskHandle(
            self.machine.disk,
            vfs=self.machine.vfs.vfs_name,
            alive=life.alive,
            sync_fails=lambda: rng.random() < dials.sync_fails,
            sync_takes=runtime.spend,
        )
        settings = EngineSettings(
            journal=JournalSettings(
                segment_bytes=dials.segment_bytes, sync_bytes=64 << 10, spares=2, segments=5
            ),
            local_cut_bytes=dials.local_cut_bytes,
            answer_s=dials.commit_interval_s,
            give_up_s=4 * dials.commit_interval_s,
            commit_interval_s=dials.commit_interval_s,
            inline_bytes_max=dials.inline_bytes_max,
            multipart=dials.multipart,
            part_bytes=dials.part_bytes,
            dirty_bytes_max=6 * dials.segment_bytes,
            durability_remote=dials.remote,
            ram_bytes=dials.ram_bytes,
            reclaim_window_s=dials.window_s,
            reclaim_hourly_s=dials.hourly_s,
            reclaim_grace_s=dials.grace_s,
            reclaim_every_s=dials.every_s,
            checkpoint_commits_max=dials.checkpoint_commits_max,
            policy=CLASSES if dials.classes else ClassPolicy(),
        )
        return Context(
            runtime=runtime,
            disk=disk,
            store=StoreHandle(
                world.store,
                name=life.name,
                alive=life.alive,
                rng=world.rng(f"{life.name} store"),
                die=life.die,
                crash_chance=dials.crash_chance,
            ),
            metrics=Metrics(),
            local=self.machine.local,
            volume=_VOLUME,
            settings=settings,
            cipher=world.cipher,
        )

    async def _serve(self, nursery: trio.Nursery) -> None:
        world, engine, plan = self.world, self.engine, self.plan
        engine.start(nursery)
        await engine.become_writer()
        self.served = True
        engine.filesystem.bury_orphans()
        try:
            await check_tree(self.fs, self.model.clone() if plan.quiet else self.model)
        except InputOutput:
            if not self.state.read_only_reason:
                raise  # else another writer has moved what this one still wants to read
        check_state(self.state)
        plan.running.set()
        if not plan.quiet:
            for number in range(world.dials.clients):
                rng = world.rng(f"{self.life.name} client {number}")
                client = Client(
                    self, rng, number + 1, pause_s=world.dials.pause_s,
                    bytes_max=world.dials.bytes_max,
                )  # fmt: skip
                nursery.start_soon(client.run)
        if plan.until is not None:
            await plan.until.wait()
        else:
            await trio.sleep(plan.seconds)
        if plan.end == "drain":
            await self._drain()
        elif plan.end != "stop":
            self.life.die()

    async def _drain(self) -> None:
        step = self._step
        if not self.state.read_only_reason:
            with suppress(BanyanFSError):
                await self.engine.committer.drain()
                self.world.promise_remote(step)
                await self.engine.leave()

    # --- what was found ------------------------------------------------------------------

    def _recovered(self, *, alone: bool) -> None:
        """Compare what recovery made with what was promised."""
        world, machine, state = self.world, self.machine, self.state
        live, head = state.live, state.committed.head
        step = world.history.find(live.chain, live.op_seq)
        head_step = world.history.find(head.chain, head.op_seq)
        assert step.covers(head_step), "the state lies behind committed.db"
        if alone and state.online:
            assert head.seq == world.store.highest(), "recovery stopped before the log's end"
        if self._given_up(step, head_step, head.fence_chain):
            self._check_set_aside(head_step)
            # From here on this machine continues that writer, until somebody else begins an epoch.
            machine.fences.add(head.fence_chain)
        elif machine.power_was_cut:
            assert machine.last.covers(step), "the state has operations from another history"
            assert step.covers(machine.synced), (
                f"operation {machine.synced.op_seq} was synced, recovery ends at {step.op_seq}"
            )
        else:
            assert step is machine.last, (
                f"the daemon died at operation {machine.last.op_seq}, back is {step.op_seq}"
            )
        world.note(f"{self.life.name} recovered {step.op_seq} {step.chain:x} of commit {head.seq}")
        self._step = machine.last = machine.synced = step
        machine.power_was_cut = False
        self._model = world.history.fold(step)
        check_rows(state, self._model)
        check_state(state)
        self._hook()

    def _given_up(self, step: Step, head_step: Step, fence: int) -> bool:
        """Tell whether the local changes had to go: the newest writer is another one.

        While the store is away nobody can know that, and the local state goes on. A machine that
        never became the writer, or whose newest commit is of another history, goes on from that.
        """
        machine, online = self.machine, self.state.online
        foreign = fence != 0 and fence not in machine.fences
        if not foreign and machine.last.covers(head_step):
            return False
        if online:
            assert step is head_step, "another writer took over, and local changes are still there"
        return step is head_step

    def _check_set_aside(self, head_step: Step) -> None:
        """Changes that were never published are kept and named."""
        kept = self.machine.synced if self.machine.power_was_cut else self.machine.last
        lost = [
            step
            for step in kept.path()
            if not isinstance(step.op, Cut | BeginEpoch | Reap) and not head_step.covers(step)
        ]
        # An earlier mount that came to nothing may have set them aside already.
        kept_before = any(name.startswith("aside/") for name in self.machine.disk.names_now)
        assert not lost or self.state.set_aside or kept_before, (
            f"{len(lost)} unpublished operations are gone"
        )

    def _hook(self) -> None:
        """Let every operation pass by the model."""
        state, append = self.state, self.state.append

        def hooked(op: Operation, tid: int = 0) -> Appended:
            self.life.alive()
            before = state.journal.chain
            appended = append(op, tid)
            self._appended(op, tid, before, appended.op_seq)
            return appended

        setattr(state, "append", hooked)  # noqa: B010  # a method is replaced on purpose

    def _appended(self, op: Operation, tid: int, before: int, op_seq: int) -> None:
        world, state = self.world, self.state
        chain = state.journal.chain
        gone = type(op) is Reap and state.live.tree.attributes(op.ino) is None
        assert before == self._step.chain
        step = world.history.add(before, chain, op_seq, op, machine=self.machine.name, gone=gone)
        self._step = self.machine.last = step
        self.issued[tid] = op
        self.model.apply(op, op_seq, gone=gone)
        world.calls += 1
        world.note(f"{self.life.name} {op_seq} {type(op).__name__} {chain:x}")
        if type(op) is BeginEpoch:
            self.machine.fences.add(chain)
        if self._rng.random() < world.dials.check_chance:
            check_state(state)
            check_rows(state, self.model)

    # --- promises ------------------------------------------------------------------------

    async def fsync(self) -> None:
        """Call fsync; what was answered before it is promised when it returns."""
        step = self._step
        await self.fs.fsync()
        self.life.alive()
        machine = self.machine
        machine.synced = step if step.covers(machine.synced) else machine.synced
        if self.world.dials.remote:
            self.world.promise_remote(step)


def run_world(
    seed: int | str, dials: Dials, scratch: Path, drive: Callable[[World], Awaitable[None]]
) -> World:
    """Run a driver in a fresh world with virtual time and a seeded scheduler."""
    world = World(seed, dials, scratch)
    scheduler = trio._core._run
    setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True)  # noqa: B010  # Final, for others
    scheduler._r.seed(f"{seed}/scheduler")
    # What is left of the world before this one would stay frozen for ever: 1 to 3 MB each.
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    try:
        # A ballast of full size in RAM would be a quarter of the work of a world.
        with mock.patch.object(space, "BALLAST_BYTES_MAX", 64 << 10):
            trio.run(drive, world, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True, exist_ok=True)
    return world
