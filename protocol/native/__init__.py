"""Internal: the native protocol, msgpack messages in length-prefixed frames (docs/protocol.md)."""
