"""Tests of the native protocol."""
