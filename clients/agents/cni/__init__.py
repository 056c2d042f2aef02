"""A CNI plugin, in the role of Calico's: gives pods addresses of Calico's pools, and wires them to their node.

A container runtime starts a plugin for each pod and each call, so this package imports little: nothing of `clients`, no
asyncio, no command line library. `install` (`__main__`) writes the program that the runtime starts.

- `ipam`: decides about addresses. Pure: it asks for requests to the API server and is told their answers.
- `records`: IPAMBlock, BlockAffinity and IPAMHandle as Calico writes them. Pure.
- `leaks`: what an audit of those objects finds. Pure.
- `apiserver`, `kubeconfig`: the requests, by http.client.
- `network`: the veth pair, addresses and routes, by `ip`.
- `specification`: configuration, arguments, results and errors of CNI 1.1.
- `plugin`: the verbs.
"""
