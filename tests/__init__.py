"""What the engine promises, tried out."""
