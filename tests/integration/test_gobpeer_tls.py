"""Go clients, with Go's crypto/tls, of `typha serve` with mutual TLS; and which of them resume sessions."""

import asyncio
import contextlib
import pathlib
import socket
from collections.abc import AsyncIterator

import pytest
import trustme

from tests.harness import certificates, go_client, served, worker_stand
from tests.integration.test_gobpeer_calico import CalicoCluster, go_clients, have_the_map
from typha.worker import tls, tls_session

pytestmark = [pytest.mark.go, pytest.mark.slow]


class Access:
    """TLS files of the server and of clients, and the flags that pass them to the Go client."""

    def __init__(self, folder: pathlib.Path, engine: str) -> None:
        folder.mkdir()
        self.files = certificates.make(folder, engine)
        self.variables = {
            "TYPHA_SERVERKEYFILE": str(folder / "server.key"),
            "TYPHA_SERVERCERTFILE": str(folder / "server.pem"),
            "TYPHA_CAFILE": str(folder / "ca.pem"),
            "TYPHA_CLIENTCN": certificates.AGENT,
            "TYPHA_TLSENGINE": engine,
        }

    def flags(
        self, name: str, *, cn: str = certificates.AGENT, issuer: trustme.CA | None = None, trusted: str = "ca.pem"
    ) -> tuple[str, ...]:
        """Issue a client certificate. Returns the flags of its client."""
        issued = (issuer or self.files.authority).issue_cert(common_name=cn)
        self.files.renew(f"{name}.key", issued.private_key_pem.bytes())
        self.files.renew(f"{name}.pem", issued.cert_chain_pems[0].bytes())
        folder = self.files.folder
        return f"-ca={folder / trusted}", f"-cert={folder / name}.pem", f"-key={folder / name}.key"


@pytest.fixture
async def cluster(tmp_path: pathlib.Path) -> AsyncIterator[CalicoCluster]:
    async with CalicoCluster(tmp_path) as opened:
        yield opened


@pytest.fixture(params=certificates.ENGINES)
def access(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> Access:
    return Access(tmp_path / "tls", request.param)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_every_syncer_type_survives_churn_and_a_renewal_of_the_certificate(
    gobpeer: str, cluster: CalicoCluster, access: Access, version: str
) -> None:
    flags = (*access.flags("agent"), f"-tls={version}")
    async with (
        served.serving(cluster, "--workers", "1", TYPHA_CALICOFEEDS="true", **access.variables) as service,
        contextlib.AsyncExitStack() as stack,
    ):
        address = await service.address()
        clients = await stack.enter_async_context(go_clients(gobpeer, address, *flags))
        await have_the_map(cluster, clients)
        for number in range(20):
            cluster.churn(number)
        await have_the_map(cluster, clients)
        access.files.write()
        await service.logged("TLS files have changed")
        again = await stack.enter_async_context(go_clients(gobpeer, address, *flags))
        cluster.churn(21)
        await have_the_map(cluster, clients + again)
    assert "Traceback" not in service.text


async def test_a_client_without_a_valid_certificate_gets_nothing(
    gobpeer: str, cluster: CalicoCluster, access: Access
) -> None:
    other = trustme.CA()
    access.files.renew("other.pem", other.cert_pem.bytes())
    authority = f"-ca={access.files.folder / 'ca.pem'}"
    refused = {
        "without a certificate": ((authority,), "peer did not return a certificate|peer sent no certificates"),
        "of somebody else": (access.flags("else", cn="somebody"), "does not have the required CN"),
        "of another authority": (
            access.flags("foreign", issuer=other),
            "certificate verify failed|invalid peer certificate",
        ),
        "that trusts another": (access.flags("doubter", trusted="other.pem"), "alert"),
        "in plain text": ((), "the first bytes are not TLS"),
    }
    async with served.serving(cluster, "--workers", "1", TYPHA_CALICOFEEDS="true", **access.variables) as service:
        address = await service.address()
        for flags, text in refused.values():
            async with go_client.following(gobpeer, address, "felix", *flags) as client:
                await service.logged(f"tls-failed.*({text})|({text}).*tls-failed")
                await worker_stand.eventually(lambda: client.seen[-1:] == ["error"], seconds=served.TIMEOUT_SECONDS)
                assert client.seen == ["error"]
                assert client.entries == {}
        async with go_client.following(gobpeer, address, "felix", *access.flags("agent")) as client:
            await worker_stand.eventually(lambda: client.statuses == [2], seconds=served.TIMEOUT_SECONDS)


async def answers(listener: socket.socket, contexts: tls.Contexts) -> list[int]:
    """Sizes of what the server says in the handshake of the next client, whose connection ends with its first data."""
    loop = asyncio.get_running_loop()
    connection, _ = await loop.sock_accept(listener)
    with connection:
        session = contexts.make_session()
        shaken = tls_session.Shaken(0, b"")
        sizes = []
        while not shaken.done:
            shaken = session.shake(await loop.sock_recv(connection, 1 << 16))
            assert shaken.error is None
            sizes.append(len(shaken.answer))
            await loop.sock_sendall(connection, shaken.answer)
        await loop.sock_sendall(connection, session.seal(b"x"))  # no protocol, but the client reads the ticket
        await loop.sock_recv(connection, 1 << 16)
    return sizes


async def test_an_agent_gets_no_ticket_and_our_client_in_go_resumes(
    gobpeer: str, typha_follow: str, access: Access
) -> None:
    """Only with rustls. Go says in its first message whether it has a cache of sessions."""
    contexts = tls.Contexts(access.files.settings())
    certificate = access.flags("agent")
    same = [flag.replace("=", "-file=", 1) for flag in certificate]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        by_version = {}
        for version in ("1.2", "1.3"):
            async with go_client.running(gobpeer, "client", address, "felix", *certificate, f"-tls={version}"):
                by_version[version] = await answers(listener, contexts)
        async with go_client.running(typha_follow, "-address", address, "-feed", "x", *same):
            first, second = [await answers(listener, contexts) for _ in range(2)]
    assert by_version["1.3"][-1] == 0
    assert by_version["1.2"][-1] < 100  # its last message, and nothing else
    by_rustls = access.files.engine == tls.RUSTLS
    assert (first[-1] > 0) == by_rustls
    assert (first[0] - second[0] > 500) == by_rustls  # no certificate
