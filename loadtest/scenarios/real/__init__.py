"""Runs on a real kube-apiserver: population, writers, faults from outside, and the counters' proof."""
