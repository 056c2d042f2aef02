"""Runs `nft`, and asks the kernel whether the rules have changed since."""

import asyncio
import os
import socket
import struct
from collections.abc import Sequence

import msgspec

from clients.agents.node.dataplane import table

RUN_TIMEOUT_SECONDS = 60.0
"""A first program of thousands of policies takes seconds on a busy machine."""

LISTING_LIMIT_BYTES = 1 << 28
ERROR_LIMIT_CHARACTERS = 400
"""How much of nft's complaint goes into the log: it repeats what it read."""

_NETLINK_NETFILTER = 12
_NFTABLES_GETGEN = 10 << 8 | 16
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

    def __init__(self, command: Sequence[str] = ("nft",), netlink: socket.socket | None = None) -> None:
        """`netlink` is from `open_netlink`, in the namespace that the command runs in. Default: this process' one."""
        self._command = tuple(command)
        self._netlink = netlink

    def close(self) -> None:
        """Closes the socket."""
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

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
        if self._netlink is None:
            self._netlink = open_netlink()
        length = _HEADER.size + _NFGENMSG_BYTES
        self._netlink.send(_HEADER.pack(length, _NFTABLES_GETGEN, _NLM_F_REQUEST, 1, 0) + bytes(_NFGENMSG_BYTES))
        answer = self._netlink.recv(4096)
        offset = length
        while offset + _ATTRIBUTE.size <= len(answer):
            size, kind = _ATTRIBUTE.unpack_from(answer, offset)
            if kind == _GENERATION_ID:
                return int.from_bytes(answer[offset + _ATTRIBUTE.size : offset + size])
            offset += max((size + 3) & ~3, _ATTRIBUTE.size)
        raise OSError("the kernel does not tell the generation of its rules")

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


def open_netlink() -> socket.socket:
    """Opens a socket to the kernel's nftables, in the network namespace of this thread."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    opened.settimeout(_ANSWER_TIMEOUT_SECONDS)
    return opened
