"""The state of a feed and its history: store, log, snapshots, catch-up blocks, and each client's position. Pure."""
