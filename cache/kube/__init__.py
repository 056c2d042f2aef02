"""The part of the cache that does I/O: requests to the Kubernetes API, driven by the pure machine in `cache.watch`.

Only `cache.kube.credentials` imports kubernetes_asyncio.
"""
