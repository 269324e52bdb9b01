"""The yardstick: loads, contenders, rounds and the table of `scripts/bench`.

Nothing here is imported by the package, and nothing here imports the package.
"""
