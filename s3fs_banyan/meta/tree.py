"""Names and inodes: queries, and the rows that change too often to write each time.

Inside the long transaction of live.db, changed inodes, new names and counters wait in RAM and
are written when it ends (`flush`): a file that is created, written and closed costs one row of
its inode, not three, and one that is made under another name and renamed one row of a name. A
daemon that dies loses the transaction as a whole and folds it again from the journal, so the
rows and what waits are never apart.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator

import apsw

from s3fs_banyan.meta.database import runner
from s3fs_banyan.meta.tables import COUNTERS
from s3fs_banyan.model import Attributes, Dentry

_CACHED_INODES_MAX = 65_536

_SELECT = "SELECT * FROM inode WHERE ino = ?"
_INSERT = "INSERT INTO inode VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_UPDATE = (
    "UPDATE inode SET mode = ?2, nlink = ?3, uid = ?4, gid = ?5, rdev = ?6, size = ?7,"
    " atime_ns = ?8, mtime_ns = ?9, ctime_ns = ?10 WHERE ino = ?1"
)


class Tree:
    """The namespace of live.db. Synchronous; one event loop."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._run = runner(connection)
        self._many = connection.cursor().executemany
        self._inodes: dict[int, Attributes] = {}
        self._new: set[int] = set()
        self._changed: set[int] = set()
        self._new_names: dict[tuple[int, bytes], tuple[int, int]] = {}
        """(directory, name) -> (inode, cookie) of names whose rows are not written yet."""
        self._has_xattrs = bool(self._run("SELECT 1 FROM xattr LIMIT 1").fetchall())
        """False: no inode has any, which is the rule, and nobody need look."""
        self._counters = {
            name: int(value)
            for name, value in self._run("SELECT name, value FROM counter").fetchall()
        }
        self._counters_stored = dict(self._counters)
        self.inode_count: int = self._run("SELECT count(*) FROM inode").fetchall()[0][0]

    # --- inodes --------------------------------------------------------------------------

    def attributes(self, ino: int) -> Attributes | None:
        """Return the inode, or None if there is none of that number."""
        found = self._inodes.get(ino)
        if found is not None:
            return found
        rows = self._run(_SELECT, (ino,)).fetchall()
        if not rows:
            return None
        if len(self._inodes) >= _CACHED_INODES_MAX:
            self._shrink()
        found = self._inodes[ino] = Attributes(*rows[0])
        return found

    def inode(self, ino: int) -> Attributes:
        """Return an inode that must be there."""
        found = self.attributes(ino)
        if found is None:
            raise KeyError(f"inode {ino} is not in the state")
        return found

    def add(self, attributes: Attributes) -> None:
        """Add an inode."""
        self._inodes[attributes.ino] = attributes
        self._new.add(attributes.ino)
        self.inode_count += 1

    def put(self, attributes: Attributes) -> None:
        """Change an inode."""
        ino = attributes.ino
        self._inodes[ino] = attributes
        if ino not in self._new:
            self._changed.add(ino)

    def remove(self, ino: int) -> None:
        """Remove an inode's row."""
        self._inodes.pop(ino, None)
        self._changed.discard(ino)
        self.inode_count -= 1
        if ino in self._new:
            self._new.discard(ino)
            # A commit of a former life, adopted later, may hold the row never written here.
            noted = "INSERT OR IGNORE INTO dirty_inode SELECT active, ? FROM flip"
            self._run(noted, (ino,)).fetchall()
        else:
            self._run("DELETE FROM inode WHERE ino = ?", (ino,)).fetchall()

    def _shrink(self) -> None:
        for ino in list(self._inodes)[: _CACHED_INODES_MAX // 2]:
            if ino not in self._new and ino not in self._changed:
                del self._inodes[ino]

    # --- names ---------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> int | None:
        """Return the inode number behind a name."""
        new = self._new_names.get((parent, name))
        if new is not None:
            return new[0]
        rows = self._run(
            "SELECT ino FROM dentry WHERE parent = ? AND name = ?", (parent, name)
        ).fetchall()
        return rows[0][0] if rows else None

    def entries(self, parent: int, after_cookie: int, limit: int) -> list[Dentry]:
        """Return up to `limit` names of a directory behind a cookie, in order of cookies."""
        self._write_names()
        rows = self._run(
            "SELECT name, ino, cookie FROM dentry WHERE parent = ? AND cookie > ?"
            " ORDER BY cookie LIMIT ?",
            (parent, after_cookie, limit),
        ).fetchall()
        return [Dentry(*row) for row in rows]

    def is_empty(self, parent: int) -> bool:
        """Tell whether a directory has no names."""
        self._write_names()
        return not self._run("SELECT 1 FROM dentry WHERE parent = ? LIMIT 1", (parent,)).fetchall()

    def add_name(self, parent: int, name: bytes, ino: int, cookie: int) -> None:
        """Add a name that is not there."""
        self._new_names[parent, name] = (ino, cookie)

    def point_name(self, parent: int, name: bytes, ino: int) -> None:
        """Let a name that is there mean another inode."""
        new = self._new_names.get((parent, name))
        if new is not None:
            self._new_names[parent, name] = (ino, new[1])
            return
        self._run(
            "UPDATE dentry SET ino = ? WHERE parent = ? AND name = ?", (ino, parent, name)
        ).fetchall()

    def remove_name(self, parent: int, name: bytes) -> None:
        """Remove a name."""
        if self._new_names.pop((parent, name), None) is None:
            self._run("DELETE FROM dentry WHERE parent = ? AND name = ?", (parent, name)).fetchall()
        else:
            # As for an inode: a commit of a former life may hold the row never written here.
            noted = "INSERT OR IGNORE INTO dirty_dentry SELECT active, ?, ? FROM flip"
            self._run(noted, (parent, name)).fetchall()

    def parent_of_directory(self, ino: int) -> int | None:
        """Return the directory that holds a directory's one name; scans, so for rare use."""
        self._write_names()
        rows = self._run("SELECT parent FROM dentry WHERE ino = ? LIMIT 1", (ino,)).fetchall()
        return rows[0][0] if rows else None

    def _write_names(self) -> None:
        if self._new_names:
            rows = [(*key, *value) for key, value in self._new_names.items()]
            self._many("INSERT INTO dentry VALUES (?, ?, ?, ?)", rows)
            self._new_names.clear()

    # --- links, attributes ---------------------------------------------------------------

    def add_symlink(self, ino: int, target: bytes) -> None:
        """Store what a symbolic link points to."""
        self._run("INSERT INTO symlink VALUES (?, ?)", (ino, target)).fetchall()

    def symlink(self, ino: int) -> bytes | None:
        """Return what a symbolic link points to."""
        rows = self._run("SELECT target FROM symlink WHERE ino = ?", (ino,)).fetchall()
        return rows[0][0] if rows else None

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        """Return one extended attribute."""
        if not self._has_xattrs:
            return None
        rows = self._run(
            "SELECT value FROM xattr WHERE ino = ? AND name = ?", (ino, name)
        ).fetchall()
        return rows[0][0] if rows else None

    def xattr_names(self, ino: int) -> list[bytes]:
        """Return the names of an inode's extended attributes."""
        if not self._has_xattrs:
            return []
        rows = self._run("SELECT name FROM xattr WHERE ino = ? ORDER BY name", (ino,)).fetchall()
        return [row[0] for row in rows]

    def set_xattr(self, ino: int, name: bytes, value: bytes) -> None:
        """Add or change an extended attribute."""
        if self.xattr(ino, name) is None:
            self._has_xattrs = True
            self._run("INSERT INTO xattr VALUES (?, ?, ?)", (ino, name, value)).fetchall()
        else:
            self._run(
                "UPDATE xattr SET value = ? WHERE ino = ? AND name = ?", (value, ino, name)
            ).fetchall()

    def remove_xattr(self, ino: int, name: bytes) -> None:
        """Remove an extended attribute."""
        self._run("DELETE FROM xattr WHERE ino = ? AND name = ?", (ino, name)).fetchall()

    def remove_belongings(self, ino: int) -> None:
        """Remove the symbolic link and the extended attributes of an inode that is there."""
        if self._has_xattrs:
            self._run("DELETE FROM xattr WHERE ino = ?", (ino,)).fetchall()
        if stat.S_ISLNK(self.inode(ino).mode):
            self._run("DELETE FROM symlink WHERE ino = ?", (ino,)).fetchall()

    # --- counters, orphans, flush --------------------------------------------------------

    def counter(self, name: str) -> int:
        """Return a counter of the state."""
        return self._counters[name]

    def set_counter(self, name: str, value: int) -> None:
        """Change a counter of the state."""
        self._counters[name] = value

    def orphans(self) -> Iterator[int]:
        """Give the inodes without a name (rows in RAM are written first)."""
        self.flush()
        for (ino,) in self._run("SELECT ino FROM inode WHERE nlink = 0").fetchall():
            yield ino

    def flush(self) -> None:
        """Write the names, inodes and counters that wait in RAM."""
        self._write_names()
        if self._new:
            self._many(_INSERT, [self._inodes[ino] for ino in sorted(self._new)])
            self._new.clear()
        if self._changed:
            self._many(_UPDATE, [self._inodes[ino] for ino in sorted(self._changed)])
            self._changed.clear()
        for name in COUNTERS:
            value = self._counters[name]
            if self._counters_stored[name] != value:
                self._run("UPDATE counter SET value = ? WHERE name = ?", (value, name)).fetchall()
                self._counters_stored[name] = value
