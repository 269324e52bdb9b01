"""Where bytes are: the journal, RAM, the block cache, the store."""
