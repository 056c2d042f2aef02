"""Agents built on the public client: reference programs, and examples for authors of other agents.

They use nothing of this project but `clients` and `protocol`, and the service imports nothing of them.
"""
