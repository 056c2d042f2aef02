"""The original Typha's protocol: gob messages, plain or in snappy framing (docs/reference/typha-wire.md).

As in the native protocol nothing behind the handshake depends on the connection, so a frame is encoded once for all.
"""
