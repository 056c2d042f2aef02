"""What is known of the cluster, and how it became known.

Watch machine, converters, feeds, store, update log and snapshots. Pure, except for `cache.kube`, which talks to the API
server. Imports `protocol`; knows nothing of the process that serves it (`typha`).
"""
