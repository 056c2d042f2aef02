"""Tests of loadtest.bench."""
