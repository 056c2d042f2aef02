"""State and its history: the store, the log, snapshots, catch-up blocks, and each client's place in them. Pure."""
