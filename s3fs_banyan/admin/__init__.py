"""What is done to a volume as a whole, beside the daemon of a mount: checks."""
