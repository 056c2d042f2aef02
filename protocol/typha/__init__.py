"""Internal: the protocol of Calico's Typha: gob messages, plain or in snappy framing (spec of the wire).

As in the native protocol, nothing after the handshake depends on the connection, so a frame is encoded once for all
clients.
"""
