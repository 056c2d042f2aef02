"""The hub: objects in, updates out to logs and snapshots; starts and watches the workers. It holds no client."""
