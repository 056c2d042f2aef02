"""Certificates of service and agents, made for one run in its folder."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import trustme

from loadtest.swarm import control

CLIENT_NAME: Final = "typha-client"
"""The common name that the service requires."""


@dataclasses.dataclass(frozen=True, slots=True)
class Certificates:
    """The service's environment variables and the agents' files."""

    environment: dict[str, str]
    agents: control.TlsFiles

    @property
    def server_files(self) -> tuple[str, str, str]:
        """Certificate, key, and authority of the clients' certificates."""
        names = ("TYPHA_SERVERCERTFILE", "TYPHA_SERVERKEYFILE", "TYPHA_CAFILE")
        certificate, key, authority = (self.environment[name] for name in names)
        return certificate, key, authority


def make(folder: Path, *, host: str, more_hosts: Iterable[str] = ()) -> Certificates:
    """Make an authority, a certificate for a service at `host` (and replicas elsewhere), and one for all agents."""
    authority = trustme.CA()
    files = {name: folder / f"{name}.pem" for name in ("authority", "server", "server-key", "agent", "agent-key")}
    authority.cert_pem.write_to_path(files["authority"])
    server = authority.issue_cert(
        host, "localhost", *more_hosts, common_name=CLIENT_NAME
    )  # replicas are clients of each other
    agent = authority.issue_cert("agent.example.com", common_name=CLIENT_NAME)
    for name, certificate in (("server", server), ("agent", agent)):
        files[f"{name}-key"].touch(mode=0o600)
        certificate.private_key_pem.write_to_path(files[f"{name}-key"])
        files[name].write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    return Certificates(
        environment={
            "TYPHA_CAFILE": str(files["authority"]),
            "TYPHA_SERVERCERTFILE": str(files["server"]),
            "TYPHA_SERVERKEYFILE": str(files["server-key"]),
            "TYPHA_CLIENTCN": CLIENT_NAME,
        },
        agents=control.TlsFiles(
            authority=str(files["authority"]), certificate=str(files["agent"]), key=str(files["agent-key"])
        ),
    )
