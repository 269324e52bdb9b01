-- The state: what the fold of operations makes. The same tables stand in live.db, committed.db,
-- every delta and every checkpoint. Keys are declared once; no table has a second UNIQUE.
-- Column order is part of format level 1: docs/format/commit.md.
CREATE TABLE inode (
    ino INTEGER PRIMARY KEY,          -- never reused
    mode INTEGER NOT NULL,            -- type and permissions, as in stat(2)
    nlink INTEGER NOT NULL,           -- 0: an orphan, kept until nobody holds it
    uid INTEGER NOT NULL,
    gid INTEGER NOT NULL,
    rdev INTEGER NOT NULL,
    size INTEGER NOT NULL,            -- bytes
    atime_ns INTEGER NOT NULL,        -- Unix nanoseconds, signed
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL
) STRICT;
CREATE TABLE dentry (
    parent INTEGER NOT NULL,
    name BLOB NOT NULL,
    ino INTEGER NOT NULL,
    cookie INTEGER NOT NULL,          -- the operation that made it; readdir orders by it
    PRIMARY KEY (parent, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX dentry_by_cookie ON dentry (parent, cookie);
CREATE TABLE symlink (
    ino INTEGER PRIMARY KEY,
    target BLOB NOT NULL
) STRICT;
CREATE TABLE xattr (
    ino INTEGER NOT NULL,
    name BLOB NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (ino, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE extent (
    ino INTEGER NOT NULL,
    offset INTEGER NOT NULL,          -- in the file; extents of a file never overlap
    length INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    chunk_offset INTEGER NOT NULL,
    PRIMARY KEY (ino, offset)
) STRICT, WITHOUT ROWID;
CREATE TABLE chunk (
    id INTEGER PRIMARY KEY,           -- epoch << 40 | counter
    length INTEGER NOT NULL,
    refs INTEGER NOT NULL             -- number of extents; the row goes at 0
) STRICT;
CREATE TABLE counter (
    name TEXT PRIMARY KEY,            -- epoch, next_ino, next_chunk, watermark
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
