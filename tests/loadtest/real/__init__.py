"""Tests of loadtest.scenarios.real."""
