"""Tests of protocol/gob."""
