"""A deterministic simulation of hub, workers, network and clients: `python -m tests.simulation SEED [-v]`."""
