"""POSIX rules on inode numbers: a call becomes an operation or an errno. No FUSE in here."""
