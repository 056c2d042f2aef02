"""Tests mirror the sources: tests/<package>/test_<module>.py; stories of the whole in tests/integration."""
