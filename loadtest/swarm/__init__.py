"""A swarm of simulated node agents: worker processes with thousands of raw sockets each, and their supervisor.

`states` holds what an agent's map is, `agent` what one agent does with its byte stream (both pure), `engine` the
sockets of one process, `worker` and `public` the processes, `supervisor` the parent's side.
docs/load-test.md says what is proved and how.
"""
