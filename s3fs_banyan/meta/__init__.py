"""The state of a volume on SQLite: the fold, its queries, deltas and committed.db."""
