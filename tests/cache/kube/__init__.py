"""Tests of cache.kube."""
