"""Fuzz targets for every decoder of what comes from outside, and a search for the costliest hello.

`make fuzz` runs them for long (see `tests.fuzz.__main__`); the test suite runs some thousand inputs of each.
"""
