"""The state machine that lists and watches one resource type on the API server. Pure: `cache.kube` does the I/O."""
