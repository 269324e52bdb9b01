"""Bytes of everything that outlives a process: pure functions, no I/O, no clock.

Each module owns one format; its byte table is in `docs/format/`. Decoders check magic, version,
length and checksum before they look at anything else, and never guess.
"""
