"""What a run needs around the service: processes, control plane, cluster access, certificates."""
