"""What a process tells about itself: `table` (names), `metrics` (values, HTTP), `log`.

The only importer of prometheus_client. Nothing is imported here, for a command that logs needs no
metrics.
"""
