"""The I/O of the cache: requests to the Kubernetes API, driven by the pure machine in `cache.watch`.

Only `cache.kube.credentials` imports kubernetes_asyncio.
"""
