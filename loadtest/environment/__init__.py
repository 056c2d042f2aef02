"""The surroundings of the service in a run: processes, control plane, cluster access, certificates, testbed."""
