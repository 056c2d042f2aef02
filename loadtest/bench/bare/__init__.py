"""Bare loops to measure the service against: one process with its core and nothing else. See docs/performance.md."""
