"""Towards the store: cut, seal, upload, publish, and back: recovery, fencing, reclaim."""
