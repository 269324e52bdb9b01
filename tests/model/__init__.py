"""Random programs compared with a small model."""
