"""The cluster's state in memory, and how it gets there: watching, converting, storing.

Contains the watch machine, converters, feeds, the store, the update log and snapshots. Pure, except `cache.kube`,
which talks to the API server. Imports `protocol`, and knows nothing about the process that serves the data (`typha`).
"""
