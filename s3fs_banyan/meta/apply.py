"""The fold: `apply(operation)` changes the state, deterministically.

No clock, no randomness, no I/O but its database. Replay, the running mount and the simulation's
model all rest on this: an operation that was validated and journaled always applies, and always
with the same result. An exception here is a broken invariant and ends the daemon.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Any

from s3fs_banyan.meta.extents import Extents
from s3fs_banyan.meta.tree import Tree
from s3fs_banyan.model import (
    Attributes,
    BeginEpoch,
    Cut,
    Epoch,
    Link,
    Make,
    Operation,
    Reap,
    RemoveXattr,
    Rename,
    Rewrite,
    Rmdir,
    SetAttributes,
    SetXattr,
    Unlink,
    Write,
    first_chunk_of,
)


class Fold:
    """Applies operations to the tree and the extents of live.db."""

    def __init__(self, tree: Tree, extents: Extents) -> None:
        self._tree = tree
        self._extents = extents
        self._appliers: dict[type, Callable[[Any, int], None]] = {
            BeginEpoch: self._begin_epoch,
            Cut: self._cut,
            Make: self._make,
            Link: self._link,
            Unlink: self._unlink,
            Rmdir: self._rmdir,
            Rename: self._rename,
            SetAttributes: self._set_attributes,
            SetXattr: self._set_xattr,
            RemoveXattr: self._remove_xattr,
            Reap: self._reap,
        }

    def apply(self, op: Operation, op_seq: int, segment: int, position: int) -> None:
        """Apply one operation, whose record lies at `position` of `segment`."""
        if type(op) is Write:
            self._write(op, op_seq, segment, position)
        elif type(op) is Rewrite:
            size = self._tree.inode(op.ino).size
            length = len(op.data)
            self._extents.write(op.ino, op.offset, length, size, segment, position, op_seq)
        else:
            self._appliers[type(op)](op, op_seq)

    def _begin_epoch(self, op: BeginEpoch, _op_seq: int) -> None:
        self._extents.forbid_growth()
        self._tree.set_counter("epoch", op.epoch)
        first = int(first_chunk_of(Epoch(op.epoch)))
        self._tree.set_counter("next_chunk", first)

    def _cut(self, _op: Cut, _op_seq: int) -> None:
        self._extents.forbid_growth()
        self._tree.set_counter("watermark", self._tree.counter("next_chunk"))

    def _make(self, op: Make, op_seq: int) -> None:
        tree, now = self._tree, op.time_ns
        is_directory = stat.S_ISDIR(op.mode)
        size = len(op.target) if stat.S_ISLNK(op.mode) else 0
        nlink = 2 if is_directory else 1
        tree.add(Attributes(op.ino, op.mode, nlink, op.uid, op.gid, op.rdev, size, now, now, now))
        tree.set_counter("next_ino", max(tree.counter("next_ino"), op.ino + 1))
        if stat.S_ISLNK(op.mode):
            tree.add_symlink(op.ino, op.target)
        tree.add_name(op.parent, op.name, op.ino, op_seq)
        self._touch_directory(op.parent, now, 1 if is_directory else 0)

    def _link(self, op: Link, op_seq: int) -> None:
        self._tree.add_name(op.parent, op.name, op.ino, op_seq)
        self._change_links(op.ino, 1, op.time_ns)
        self._touch_directory(op.parent, op.time_ns, 0)

    def _unlink(self, op: Unlink, _op_seq: int) -> None:
        ino = self._tree.lookup(op.parent, op.name)
        if ino is None:
            raise KeyError(f"unlink of a name that is not there, in {op.parent}")
        self._tree.remove_name(op.parent, op.name)
        self._change_links(ino, -1, op.time_ns)
        self._touch_directory(op.parent, op.time_ns, 0)

    def _rmdir(self, op: Rmdir, _op_seq: int) -> None:
        ino = self._tree.lookup(op.parent, op.name)
        if ino is None:
            raise KeyError(f"rmdir of a name that is not there, in {op.parent}")
        self._tree.remove_name(op.parent, op.name)
        self._change_links(ino, -2, op.time_ns)
        self._touch_directory(op.parent, op.time_ns, -1)

    def _rename(self, op: Rename, op_seq: int) -> None:
        tree, now = self._tree, op.time_ns
        ino = tree.lookup(op.parent, op.name)
        if ino is None:
            raise KeyError(f"rename of a name that is not there, in {op.parent}")
        target = tree.lookup(op.new_parent, op.new_name)
        moved_is_directory = stat.S_ISDIR(tree.inode(ino).mode)
        leaving = arriving = int(moved_is_directory)
        if target is not None:
            target_is_directory = stat.S_ISDIR(tree.inode(target).mode)
            tree.point_name(op.new_parent, op.new_name, ino)
            if op.exchange:
                tree.point_name(op.parent, op.name, target)
                leaving -= int(target_is_directory)
                arriving -= int(target_is_directory)
                self._change_links(target, 0, now)
            else:
                tree.remove_name(op.parent, op.name)
                arriving -= int(target_is_directory)
                self._change_links(target, -2 if target_is_directory else -1, now)
        else:
            tree.remove_name(op.parent, op.name)
            tree.add_name(op.new_parent, op.new_name, ino, op_seq)
        self._change_links(ino, 0, now)
        self._touch_directory(op.parent, now, -leaving)
        self._touch_directory(op.new_parent, now, arriving)

    def _write(self, op: Write, op_seq: int, segment: int, position: int) -> None:
        old = self._tree.inode(op.ino)
        length = len(op.data)
        self._extents.write(op.ino, op.offset, length, old.size, segment, position, op_seq)
        mode = _without_set_id(old.mode) if op.kill_suid else old.mode
        self._tree.put(
            Attributes(
                op.ino,
                mode,
                old.nlink,
                old.uid,
                old.gid,
                old.rdev,
                max(old.size, op.offset + length),
                old.atime_ns,
                op.time_ns,
                op.time_ns,
            )
        )

    def _set_attributes(self, op: SetAttributes, _op_seq: int) -> None:
        old = self._tree.inode(op.ino)
        size = old.size if op.size is None else op.size
        if size < old.size:
            self._extents.carve(op.ino, size, old.size)
        self._tree.put(
            Attributes(
                op.ino,
                old.mode if op.mode is None else stat.S_IFMT(old.mode) | (op.mode & 0o7777),
                old.nlink,
                old.uid if op.uid is None else op.uid,
                old.gid if op.gid is None else op.gid,
                old.rdev,
                size,
                old.atime_ns if op.atime_ns is None else op.atime_ns,
                old.mtime_ns if op.mtime_ns is None else op.mtime_ns,
                op.ctime_ns,
            )
        )

    def _set_xattr(self, op: SetXattr, _op_seq: int) -> None:
        self._tree.set_xattr(op.ino, op.name, op.value)
        self._change_links(op.ino, 0, op.time_ns)

    def _remove_xattr(self, op: RemoveXattr, _op_seq: int) -> None:
        self._tree.remove_xattr(op.ino, op.name)
        self._change_links(op.ino, 0, op.time_ns)

    def _reap(self, op: Reap, _op_seq: int) -> None:
        if self._extents.reap(op.ino, op.rows):
            self._tree.remove_belongings(op.ino)
            self._tree.remove(op.ino)

    def _change_links(self, ino: int, change: int, ctime_ns: int) -> None:
        old = self._tree.inode(ino)
        self._tree.put(old._replace(nlink=old.nlink + change, ctime_ns=ctime_ns))

    def _touch_directory(self, ino: int, time_ns: int, change: int) -> None:
        old = self._tree.inode(ino)
        self._tree.put(old._replace(nlink=old.nlink + change, mtime_ns=time_ns, ctime_ns=time_ns))


def _without_set_id(mode: int) -> int:
    """Return the mode as a write leaves it: set-id bits gone (set-gid only where executable)."""
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode
