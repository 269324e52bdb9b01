"""The reference file system: what a fold of operations has to mean, in dicts and byte arrays.

It shares the operations with the engine and nothing else. Link counts are counted from the names
each time and never kept, so a slip in the engine's arithmetic has no twin here. Which errno a
call deserves is decided here a second time, from POSIX and the manual pages.
"""

from __future__ import annotations

import copy
import errno
import os
import stat
from dataclasses import dataclass, field

from s3fs_banyan.model import (
    ROOT_INO,
    BeginEpoch,
    Cut,
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
)


@dataclass(slots=True)
class Node:
    """One inode; `names` of a directory are name -> (inode, cookie)."""

    mode: int
    uid: int
    gid: int
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    data: bytearray = field(default_factory=bytearray)
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    names: dict[bytes, tuple[int, int]] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


class ReferenceFS:
    """A volume's state after some operations."""

    def __init__(self, *, mode: int, created_ns: int) -> None:
        root = Node(stat.S_IFDIR | mode, 0, 0, 0, created_ns, created_ns, created_ns)
        self.nodes: dict[int, Node] = {ROOT_INO: root}
        self.version: dict[int, int] = {}
        """Inode -> number of the last operation that changed its bytes."""

    def clone(self) -> ReferenceFS:
        """Return a copy that goes its own way."""
        other = ReferenceFS(mode=0, created_ns=0)
        other.nodes = {ino: copy.copy(node) for ino, node in self.nodes.items()}
        for node in other.nodes.values():
            node.data, node.xattrs = bytearray(node.data), dict(node.xattrs)
            node.names = dict(node.names)
        other.version = dict(self.version)
        return other

    # --- looking -------------------------------------------------------------------------

    def nlink(self, ino: int) -> int:
        """Count the links of an inode from the names."""
        found = sum(
            entry[0] == ino for node in self.nodes.values() for entry in node.names.values()
        )
        node = self.nodes[ino]
        if not node.is_directory:
            return found
        if ino != ROOT_INO and not found:
            return 0
        return 2 + sum(self.nodes[child].is_directory for child, _ in node.names.values())

    def nlinks(self) -> dict[int, int]:
        """Count the links of all inodes."""
        found = dict.fromkeys(self.nodes, 0)
        directories = set(self.directories())
        below = dict.fromkeys(directories, 0)
        for ino in directories:
            for child, _ in self.nodes[ino].names.values():
                found[child] += 1
                below[ino] += child in directories
        for ino in directories:
            linked = ino == ROOT_INO or found[ino]
            found[ino] = 2 + below[ino] if linked else 0
        return found

    def row(self, ino: int, nlink: int) -> tuple[int, ...]:
        """Return the attributes as the engine's inode row has them."""
        node = self.nodes[ino]
        size = len(node.target) if stat.S_ISLNK(node.mode) else len(node.data)
        times = (node.atime_ns, node.mtime_ns, node.ctime_ns)
        return (ino, node.mode, nlink, node.uid, node.gid, node.rdev, size, *times)

    def is_below(self, ino: int, ancestor: int) -> bool:
        """Tell whether directory `ino` is `ancestor` or lies below it."""
        todo = [ancestor]
        while todo:
            at = todo.pop()
            if at == ino:
                return True
            todo += [c for c, _ in self.nodes[at].names.values() if self.nodes[c].is_directory]
        return False

    def directories(self) -> list[int]:
        """Return all directories, removed ones that are still held among them."""
        return [ino for ino, node in self.nodes.items() if node.is_directory]

    # --- the fold ------------------------------------------------------------------------

    def apply(self, op: Operation, op_seq: int, *, gone: bool) -> None:
        """Apply one operation. `gone` tells of a REAP whether it was the inode's last.

        Raises `AssertionError` for an operation that no valid call can have made.
        """
        match op:
            case BeginEpoch() | Cut():
                pass
            case Make():
                self._make(op, op_seq)
            case Link():
                node = self.nodes[op.ino]
                assert not node.is_directory
                self._name(op.parent, op.name, op.ino, op_seq, op.time_ns)
                node.ctime_ns = op.time_ns
            case Unlink() | Rmdir():
                self._remove(op)
            case Rename():
                self._rename(op, op_seq)
            case Rewrite():
                held = self.nodes[op.ino].data[op.offset : op.offset + len(op.data)]
                assert held == op.data, f"defragmentation changes bytes of inode {op.ino}"
            case Write():
                self._write(op, op_seq)
            case SetAttributes():
                self._set_attributes(op, op_seq)
            case SetXattr():
                self.nodes[op.ino].xattrs[op.name] = op.value
                self.nodes[op.ino].ctime_ns = op.time_ns
            case RemoveXattr():
                del self.nodes[op.ino].xattrs[op.name]
                self.nodes[op.ino].ctime_ns = op.time_ns
            case Reap():
                assert self.nlink(op.ino) == 0, f"inode {op.ino} is reaped although it has a name"
                if gone:
                    del self.nodes[op.ino]

    def _directory(self, ino: int) -> Node:
        node = self.nodes[ino]
        assert node.is_directory, f"inode {ino} is no directory"
        return node

    def _touch(self, ino: int, time_ns: int) -> None:
        node = self._directory(ino)
        node.mtime_ns = node.ctime_ns = time_ns

    def _name(self, parent: int, name: bytes, ino: int, cookie: int, time_ns: int) -> None:
        directory = self._directory(parent)
        assert self.nlink(parent) > 0, f"a name in removed directory {parent}"
        assert name not in directory.names, f"{name!r} is in {parent} already"
        directory.names[name] = (ino, cookie)
        self._touch(parent, time_ns)

    def _make(self, op: Make, op_seq: int) -> None:
        assert op.ino not in self.nodes, f"inode number {op.ino} is used twice"
        now = op.time_ns
        self.nodes[op.ino] = Node(op.mode, op.uid, op.gid, op.rdev, now, now, now, target=op.target)
        self._name(op.parent, op.name, op.ino, op_seq, now)

    def _remove(self, op: Unlink | Rmdir) -> None:
        ino, _ = self._directory(op.parent).names.pop(op.name)
        node = self.nodes[ino]
        assert node.is_directory == isinstance(op, Rmdir)
        assert not node.names, f"directory {ino} is removed although it is not empty"
        node.ctime_ns = op.time_ns
        self._touch(op.parent, op.time_ns)

    def _rename(self, op: Rename, op_seq: int) -> None:
        source, destination = self._directory(op.parent), self._directory(op.new_parent)
        ino, cookie = source.names[op.name]
        target = destination.names.get(op.new_name)
        if target is None:
            assert not op.exchange
            assert self.nlink(op.new_parent) > 0
            del source.names[op.name]
            destination.names[op.new_name] = (ino, op_seq)
        else:
            assert target[0] != ino
            destination.names[op.new_name] = (ino, target[1])
            if op.exchange:
                source.names[op.name] = (target[0], cookie)
            else:
                del source.names[op.name]
                replaced = self.nodes[target[0]]
                assert not replaced.names, "rename over a directory that is not empty"
                assert replaced.is_directory == self.nodes[ino].is_directory
            self.nodes[target[0]].ctime_ns = op.time_ns
        self.nodes[ino].ctime_ns = op.time_ns
        self._touch(op.parent, op.time_ns)
        self._touch(op.new_parent, op.time_ns)

    def _write(self, op: Write, op_seq: int) -> None:
        node = self.nodes[op.ino]
        assert not node.is_directory
        end = op.offset + len(op.data)
        if len(node.data) < end:
            node.data.extend(bytes(end - len(node.data)))
        node.data[op.offset : end] = op.data
        if op.kill_suid:
            node.mode &= ~stat.S_ISUID
            if node.mode & stat.S_IXGRP:
                node.mode &= ~stat.S_ISGID
        node.mtime_ns = node.ctime_ns = op.time_ns
        self.version[op.ino] = op_seq

    def _set_attributes(self, op: SetAttributes, op_seq: int) -> None:
        node = self.nodes[op.ino]
        if op.size is not None:
            assert not node.is_directory
            del node.data[op.size :]
            node.data.extend(bytes(op.size - len(node.data)))
            self.version[op.ino] = op_seq
        if op.mode is not None:
            node.mode = stat.S_IFMT(node.mode) | (op.mode & 0o7777)
        node.uid = node.uid if op.uid is None else op.uid
        node.gid = node.gid if op.gid is None else op.gid
        node.atime_ns = node.atime_ns if op.atime_ns is None else op.atime_ns
        node.mtime_ns = node.mtime_ns if op.mtime_ns is None else op.mtime_ns
        node.ctime_ns = op.ctime_ns

    # --- which errno a call deserves -----------------------------------------------------

    def errno_in(self, parent: int, name: bytes) -> int:
        """Return the errno of an access to a name that has to be there; 0: it is."""
        node = self.nodes.get(parent)
        if node is None:
            return errno.ESTALE
        if not node.is_directory:
            return errno.ENOTDIR
        return 0 if name in node.names else errno.ENOENT

    def errno_make(self, parent: int, name: bytes) -> int:
        """Return the errno of making a name."""
        found = self.errno_in(parent, name)
        if found == 0:
            return errno.EEXIST
        if found == errno.ENOENT and self.nlink(parent) > 0:
            return errno.ENAMETOOLONG if len(name) > 255 else 0
        return found

    def errno_link(self, ino: int, parent: int, name: bytes) -> int:
        """Return the errno of link(2)."""
        if ino not in self.nodes:
            return errno.ESTALE
        if self.nodes[ino].is_directory:
            return errno.EPERM
        if self.nlink(ino) == 0:
            return errno.ENOENT
        return self.errno_make(parent, name)

    def errno_remove(self, parent: int, name: bytes, *, directory: bool) -> int:
        """Return the errno of unlink(2) or rmdir(2)."""
        found = self.errno_in(parent, name)
        if found:
            return found
        node = self.nodes[self.nodes[parent].names[name][0]]
        if not directory:
            return errno.EISDIR if node.is_directory else 0
        if not node.is_directory:
            return errno.ENOTDIR
        return errno.ENOTEMPTY if node.names else 0

    def errno_rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> int:
        """Return the errno of renameat2(2); flags 1 NOREPLACE, 2 EXCHANGE."""
        found = self.errno_in(parent, name)
        if found:
            return found
        found = self.errno_in(new_parent, new_name)
        if found == errno.ENOENT:
            return errno.ENOENT if flags == 2 or self.nlink(new_parent) == 0 else 0
        if found or flags == 2:
            return found
        if flags == 1:
            return errno.EEXIST
        ino = self.nodes[parent].names[name][0]
        target_ino = self.nodes[new_parent].names[new_name][0]
        if ino == target_ino:
            return 0
        moved, target = self.nodes[ino], self.nodes[target_ino]
        if moved.is_directory and not target.is_directory:
            return errno.ENOTDIR
        if target.is_directory and not moved.is_directory:
            return errno.EISDIR
        return errno.ENOTEMPTY if target.names else 0

    def errno_open(self, ino: int, flags: int) -> int:
        """Return the errno of open(2) of an inode."""
        if ino not in self.nodes:
            return errno.ESTALE
        del flags
        return errno.EISDIR if self.nodes[ino].is_directory else 0

    def errno_create(self, parent: int, name: bytes, flags: int) -> int:
        """Return the errno of open(2) with O_CREAT."""
        found = self.errno_in(parent, name)
        if found == errno.ENOENT:
            return self.errno_make(parent, name)
        if found:
            return found
        if flags & os.O_EXCL:
            return errno.EEXIST
        return self.errno_open(self.nodes[parent].names[name][0], flags)

    def errno_setattr(self, ino: int, *, resized: bool) -> int:
        """Return the errno of chmod, chown, utimens, truncate."""
        if ino not in self.nodes:
            return errno.ESTALE
        return errno.EISDIR if resized and self.nodes[ino].is_directory else 0

    def errno_xattr(self, ino: int, name: bytes, flags: int, *, removes: bool) -> int:
        """Return the errno of setxattr(2) (flags 1 CREATE, 2 REPLACE) or removexattr(2)."""
        if ino not in self.nodes:
            return errno.ENODATA if removes else errno.ESTALE
        there = name in self.nodes[ino].xattrs
        if removes:
            return 0 if there else errno.ENODATA
        if flags & 1 and there:
            return errno.EEXIST
        return errno.ENODATA if flags & 2 and not there else 0
