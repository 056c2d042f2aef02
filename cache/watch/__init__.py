"""The list/watch machine: follows one resource type on the API server. Pure: `cache/kube` drives it."""
