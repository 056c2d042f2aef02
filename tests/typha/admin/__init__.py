"""Tests of typha.admin."""
