"""The original Typha's protocol: gob messages, plain or in snappy framing (spec of the wire).

As in the native protocol nothing behind the handshake depends on the connection, so a frame is encoded once for all.
"""
