"""Tests of typha.peers."""
