"""Internal: the protocol of Calico's Typha: gob messages, plain or in snappy framing (docs/reference/typha-wire.md).

As in the native protocol, nothing after the handshake depends on the connection, so a frame is encoded once for all
clients.
"""
