"""The process: command line, settings, hub, workers, health, metrics, drain; every policy number is set here.

Imports `cache` and `protocol`; nothing imports it.
"""
