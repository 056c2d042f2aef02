"""Calico's data model: converts Kubernetes objects to the keys and values that Calico's agents read. Pure."""
