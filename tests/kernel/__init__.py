"""Real mounts, also compared with a plain directory."""
