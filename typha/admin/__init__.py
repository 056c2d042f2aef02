"""The admin API: what operators ask a running service."""
