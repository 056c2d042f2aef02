"""Tests of the crash course."""
