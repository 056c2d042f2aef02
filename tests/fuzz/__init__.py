"""Fuzz targets, run by hand; the test suite runs each for a moment."""
