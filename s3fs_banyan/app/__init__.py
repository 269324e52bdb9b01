"""Builds the object graph from the configuration; owns the root nursery, start and drain order."""
