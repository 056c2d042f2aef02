"""A simulated Kubernetes API server: get, list and watch as kube-apiserver answers them, with scripted faults.

`python -m loadtest.apiserver` runs it as a process; `simulator.Simulator` runs in the event loop of a test.
The store, the population and the choice of changes are pure, and the same for the same seed.
"""
