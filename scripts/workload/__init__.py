"""BanyanDB-shaped load: a replay of what its storage engines do to a file system.

Standard library only, and ignorant of the file system under test: it sees a directory.
"""
