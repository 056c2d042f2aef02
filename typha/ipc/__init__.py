"""Everything between hub and worker: messages, the link that carries them, and counters in shared memory."""
