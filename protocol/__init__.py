"""The wire, both ends of it, without I/O.

Messages, errors, codecs, framing and handshakes: bytes and the current time come in as arguments, messages and bytes
go out. Server, client library, load test and tests use the same code. Imports nothing of this project and nothing that
does I/O.
"""
