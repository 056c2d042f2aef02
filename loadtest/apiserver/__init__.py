"""A simulated Kubernetes API server: what a client of get, list and watch sees of kube-apiserver, with scripted faults.

`python -m loadtest.apiserver --help` runs it as a process of its own; `server.Simulator` runs in a test's event loop.
The store, the population and the choice of changes are pure and deterministic with a seed.
"""
