"""The one local log of operations: segments, append, group sync, replay."""
