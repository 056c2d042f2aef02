"""A swarm of simulated node agents: worker processes with thousands of sockets each, and their supervisor.

`shared_maps` holds the maps of the agents, `agent` is what an agent does with its byte stream (both pure), `engine` the
sockets of one process, `worker` and `public` are the processes, `supervisor` is their parent.
docs/load-test.md says what is proved and how.
"""
