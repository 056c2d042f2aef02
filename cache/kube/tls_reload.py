"""Keeps the TLS context of a server as new as its files."""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import structlog

from cache.kube import files

_log = structlog.get_logger("typha.tls")


Made = TypeVar("Made")


class Reloaded(Generic[Made]):
    """A server's context, or what is made of its files beside it, which is made again when one of them changes.

    What cannot be used is logged and counted, once for each change, and the old context stays in use. At the start,
    raises TlsUnusable.
    """

    def __init__(self, make: Callable[[], Made], paths: Iterable[str], *, server: str) -> None:
        self._make = make
        self._paths = tuple(paths)
        self._server = server
        self._identities = self._look()
        self._failed: tuple[object, ...] = ()
        self.current = make()
        self.failures = 0
        """Changes that could not be used."""

    def _look(self) -> list[files.Identity]:
        return [files.identity(path) for path in self._paths]

    def refresh(self) -> None:
        """Make the context again if a file has changed. Raises nothing: nobody must end for a file of others."""
        identities = self._look()  # before reading: a change in between must show
        if identities == self._identities:
            return
        try:
            self.current = self._make()
        except Exception as error:
            # It is tried again every time: the cause may be a lack of descriptors.
            failed = (identities, str(error))
            if failed != self._failed:
                self._failed = failed
                self.failures += 1
                _log.error(
                    "Changed TLS files cannot be used, keeping the old ones", server=self._server, error=str(error)
                )
            return
        self._identities = identities
        self._failed = ()
        _log.info("TLS files have changed, new connections use the new ones", server=self._server)
