"""Load tests and what they need: a simulated API server, a real control plane, a swarm of agents, a report.

It uses the service as users do, over sockets and the command line. It imports `protocol`, `clients` and the pure
conversion in `cache`, never `typha`.
"""

WRITTEN_AT = "loadtest.typha/written-at"
"""Annotation, and for Calico's feeds also label: when the writer sent the change, in nanoseconds since 1970."""
