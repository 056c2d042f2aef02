"""The BGP agent, in the role of Calico's confd: follows the `bgp` feed and keeps BIRD 2 configured and running.

- `resources`: the feed's keys and values as the objects that they mean. Pure.
- `sessions`: whom a node talks BGP with, and how: the mesh, BGPPeers, route reflectors. Pure.
- `policy`: which routes are sent, accepted and put into the kernel: blocks, pools, BGPFilters, communities. Pure.
- `rendering`: BIRD's configuration of all that. Pure.
- `bird`: BIRD as a child process: checked, configured, started again.
- `agent`: joins them. `python -m clients.agents.bgp run`.

Nothing of the feed's text reaches BIRD's configuration: every value is parsed, and printed from what it means. What
this agent does not support it names (`problems`): IPv6, passwords (no feed has Secrets), service addresses, IPIP (it
needs a BIRD with Calico's changes), sessions with workloads, and priorities of routes.
"""
