"""Seeded worlds with crashes and faults."""
