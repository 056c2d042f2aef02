"""Runs `nft`, and asks the kernel whether the table has changed since.

Two sources together say so at no cost. The generation of the rules counts all transactions, of whatever program and
table. Notifications name the tables, and get lost if there are many. So a changed generation without a notification
about the table, and without lost ones, means that another table has changed.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from clients.agents.node.dataplane import table

RUN_TIMEOUT_SECONDS = 60.0
"""A first program of thousands of policies takes seconds on a busy machine."""

LISTING_LIMIT_BYTES = 1 << 28
ERROR_LIMIT_CHARACTERS = 400
"""How much of nft's complaint goes into the log: it repeats what it read."""

_NETLINK_NETFILTER = 12
_NFTABLES = 10
_NOTIFICATIONS = 1 << 6
"""The group of nftables, as a bit of a netlink address."""
_NEW_GENERATION = _NFTABLES << 8 | 15
_TABLE_NAME = 1
"""The first attribute of every notification but `_NEW_GENERATION` is the table's name."""
_RECEIVE_BYTES = 1 << 16
_NFTABLES_GETGEN = _NFTABLES << 8 | 16
_NLM_F_REQUEST = 1
_GENERATION_ID = 1
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NFGENMSG_BYTES = 4
_ANSWER_TIMEOUT_SECONDS = 1.0


class NftFailed(Exception):
    """`nft` refused the commands, and changed nothing. The message is what it said."""


class Nft:
    """Programs and reads one table of the network namespace that the commands run in."""

    def __init__(self, command: Sequence[str] = ("nft",), sockets: "Sockets | None" = None) -> None:
        """`sockets` are from `open_sockets`, in the namespace that the command runs in.

        Raises:
            OSError: the kernel has no nftables, or this process may not use them.
        """
        self._command = tuple(command)
        self._sockets = sockets or open_sockets()

    def close(self) -> None:
        """Closes the sockets."""
        for opened in self._sockets:
            opened.close()

    async def run(self, transaction: bytes) -> None:
        """Runs one transaction.

        Raises:
            NftFailed: the kernel is as it was before.
        """
        await self._run("-j", "-f", "-", commands=transaction)

    async def read(self) -> table.Found | None:
        """What the kernel has; None if there is no such table.

        Raises:
            NftFailed: it cannot be read.
        """
        tables = msgspec.json.decode(await self._run("-j", "list", "tables"))["nftables"]
        name = {"family": table.FAMILY, "name": table.NAME}
        if not any(name.items() <= entry.get("table", {}).items() for entry in tables):
            return None
        return table.read_listing(await self._run("-j", "-n", "list", "table", table.FAMILY, table.NAME))

    def generation(self) -> int:
        """Number of the kernel's rules. Every transaction, of whatever program, adds one.

        Raises:
            OSError: the kernel does not answer, for example because it has no nftables.
        """
        netlink = self._sockets.requests
        length = _HEADER.size + _NFGENMSG_BYTES
        netlink.send(_HEADER.pack(length, _NFTABLES_GETGEN, _NLM_F_REQUEST, 1, 0) + bytes(_NFGENMSG_BYTES))
        answer = netlink.recv(4096)
        offset = length
        while offset + _ATTRIBUTE.size <= len(answer):
            size, kind = _ATTRIBUTE.unpack_from(answer, offset)
            if kind == _GENERATION_ID:
                return int.from_bytes(answer[offset + _ATTRIBUTE.size : offset + size])
            offset += max((size + 3) & ~3, _ATTRIBUTE.size)
        raise OSError("the kernel does not tell the generation of its rules")

    def notified(self) -> bool:
        """Whether there were notifications about the table, or lost ones, since the last call."""
        touched = False
        while True:
            try:
                received = self._sockets.notifications.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return touched
            except OSError:  # ENOBUFS: some were lost.
                touched = True
            else:
                touched = touched or _names_table(received)

    async def _run(self, *arguments: str, commands: bytes = b"") -> bytes:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
        )
        try:
            async with asyncio.timeout(RUN_TIMEOUT_SECONDS):
                output, errors = await process.communicate(commands)
        except TimeoutError as error:
            raise NftFailed(f"{arguments[-1]}: no answer within {RUN_TIMEOUT_SECONDS:g} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise NftFailed(errors.decode(errors="replace").strip()[:ERROR_LIMIT_CHARACTERS])
        return output


class Sockets(NamedTuple):
    """Sockets to the kernel's nftables, of one network namespace."""

    requests: socket.socket
    notifications: socket.socket


def open_sockets() -> Sockets:
    """Opens sockets in the network namespace of this thread."""
    requests = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    requests.settimeout(_ANSWER_TIMEOUT_SECONDS)
    notifications = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)
    notifications.bind((0, _NOTIFICATIONS))
    return Sockets(requests, notifications)


def _names_table(received: bytes) -> bool:
    """Whether a datagram of notifications speaks of the agent's table."""
    offset = 0
    while offset + _HEADER.size <= len(received):
        length, kind, *_ = _HEADER.unpack_from(received, offset)
        first = offset + _HEADER.size + _NFGENMSG_BYTES
        if length < _HEADER.size:
            break
        if kind != _NEW_GENERATION and first + _ATTRIBUTE.size <= len(received):
            size, attribute = _ATTRIBUTE.unpack_from(received, first)
            if attribute == _TABLE_NAME and received[first + _ATTRIBUTE.size : first + size] == _NAME:
                return True
        offset += (length + 3) & ~3
    return False


_NAME = table.NAME.encode() + b"\0"
