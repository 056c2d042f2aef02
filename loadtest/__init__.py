"""Load tests and what they need: a simulated API server, a real control plane, a swarm of agents, a report.

Uses the service as its users do, over sockets and the command line; imports `protocol`, `clients` and the pure
conversion in `cache`, never `typha`.
"""
