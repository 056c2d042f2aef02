"""Tests of loadtest.real."""
