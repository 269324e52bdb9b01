"""One file for each module, by the same name."""
