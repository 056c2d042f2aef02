"""Fuzz targets to run by hand. The test suite runs a few thousand rounds of each."""
