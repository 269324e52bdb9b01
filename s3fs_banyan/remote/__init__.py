"""The stores: one contract (`base`), its implementations, and layers of the same shape."""
