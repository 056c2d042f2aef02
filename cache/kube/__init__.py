"""The I/O of the cache: requests to the Kubernetes API, driven by the pure machine in `cache.watch`.

It also reads the files that others write (credentials, certificates) and makes every TLS context of the service.
"""
