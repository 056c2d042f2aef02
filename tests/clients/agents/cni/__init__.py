"""Tests of the CNI plugin."""
