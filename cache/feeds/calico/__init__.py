"""Calico's data model: Kubernetes objects to the keys and values that its agents understand. Pure."""
