"""A kit that tests clients and servers of the native protocol: `python -m clients.conformance`.

It plays a scripted server to any client program, or a scripted client to any server, and says which rules of
docs/protocol.md hold. docs/conformance.md explains how to use it. It builds its bytes itself, without the code of our
own client and server, so that it can find faults of theirs.
"""
