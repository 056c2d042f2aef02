"""The crash course: a whole network with Calico's roles on one machine; nodes and pods are network namespaces."""
