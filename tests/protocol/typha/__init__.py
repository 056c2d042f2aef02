"""Tests of protocol/typha."""
