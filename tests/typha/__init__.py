"""Tests of typha."""
