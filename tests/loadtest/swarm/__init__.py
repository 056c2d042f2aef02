"""Tests of loadtest.swarm."""
