"""The HTTP session to the API server, shared by all watchers. It maps aiohttp's exceptions to ours.

No Kubernetes client library is needed: a watch is a GET whose body is read line by line. Requests ask for uncompressed
answers, because the API server's CPU is scarcer than the network near it. A compressed answer is refused and never
unpacked: a few bytes of it may unpack to gigabytes.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

import aiohttp
import structlog
import yarl

from cache.kube import access, loader, tls_contexts
from cache.watch.policy import Failure

_CONNECT_SECONDS = 10.0
_LOOK_SECONDS = 60.0
"""Time between two reads of the token file, and between two looks at the other files. A rotated token appears long
before the old one expires; Kubernetes asks for a minute at most."""
_EXPIRY_MARGIN_SECONDS = 60.0
_RELOAD_SECONDS_MIN = 10.0
"""Minimum time between two runs of the helper. With wrong credentials, every try of every watcher asks for one."""
_READ_BUFFER_BYTES = 256 * 1024
_MAX_HEADER_BYTES = 8190
_HEADERS_MAX = 128
_SHOWN_CHARS = 80
_DETAIL_CHARS_MAX = 400
"""An error of the HTTP library may quote a header."""
_KEEPALIVE_OPTIONS = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
"""These detect a dead peer within a minute, before the idle limit of a watch."""

_log = structlog.get_logger(__name__)


class Interrupted(Exception):
    """A request or its answer failed on the way."""

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure
        self.detail = detail


class KubeApi:
    """The session to the API server. Call `start` before the first request, and `close` at the end.

    The session calls `load` to get the access: at the start, when the API server rejects the credentials (`reload`),
    and shortly before the credentials expire.
    """

    def __init__(
        self,
        load: Callable[[], Awaitable[access.Access]] = loader.load_access,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._load = load
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._access: access.Access | None = None
        self._ssl: ssl.SSLContext | bool = False
        self._authorization = ""
        self._looked_at = 0.0
        self._loaded_at: float | None = None
        self._warned: tuple[str, ...] = ()
        self._complained = False  # one log line per outage
        self.loads = 0
        """Number of times that the access was loaded."""
        self.load_failures = 0
        """Attempts to load the access, or to read the token again, that failed."""

    @property
    def is_open(self) -> bool:
        """Whether requests may be sent."""
        return self._session is not None

    @property
    def host(self) -> str:
        """The API server's address. Empty before the first load."""
        return self._access.host if self._access else ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What must be said about the access."""
        return self._access.warnings if self._access else ()

    async def start(self) -> None:
        """Load the access and open the session. Raises access.AccessError."""
        async with self._lock:
            await self._load_access()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, socket_factory=_keepalive_socket),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "typha"},
            read_bufsize=_READ_BUFFER_BYTES,
            auto_decompress=False,
            trust_env=False,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            max_headers=_HEADERS_MAX,
        )

    async def close(self) -> None:
        """Close all connections. The watchers must have ended."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def reload(self) -> None:
        """Load the access again, unless that was tried a moment ago. If it fails, the old one stays in use.

        Raises:
            access.AccessError: it failed.
        """
        async with self._lock:
            if self._loaded_at is None or self._clock() - self._loaded_at >= _RELOAD_SECONDS_MIN:
                await self._load_access()

    async def get(self, path: str, query: Mapping[str, str], *, read_timeout_seconds: float) -> aiohttp.ClientResponse:
        """Send a GET. The caller closes the response. Raises Interrupted."""
        return await self.request("GET", path, query, read_timeout_seconds=read_timeout_seconds)

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        *,
        read_timeout_seconds: float,
        json_body: bytes | None = None,
    ) -> aiohttp.ClientResponse:
        """Send a request. The caller closes the response. Raises Interrupted."""
        session, current, headers = await self._current()
        timeout = aiohttp.ClientTimeout(
            total=None, connect=_CONNECT_SECONDS, sock_connect=_CONNECT_SECONDS, sock_read=read_timeout_seconds
        )
        if json_body is not None:
            headers.append(("Content-Type", "application/json"))
        try:
            response = await session.request(
                method,
                current.host + path,
                params=query,
                data=json_body,
                headers=headers,
                ssl=self._ssl,
                server_hostname=current.server_name or None,
                proxy=current.proxy or None,
                timeout=timeout,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            # ValueError: a name that cannot be looked up. RuntimeError: no thread is left to do it.
            raise _interrupted(error) from error
        try:
            _refuse_encodings(response)
        except Interrupted:
            close_response(response)
            raise
        return response

    async def _current(self) -> tuple[aiohttp.ClientSession, access.Access, list[tuple[str, str]]]:
        """The session, and the access and its headers as they are now."""
        await self._refresh()
        session, current = self._session, self._access
        if session is None or current is None:
            raise RuntimeError("the session to the API server is not open")
        headers = list(current.headers)
        if self._authorization:
            headers.append(("Authorization", self._authorization))
        return session, current, headers

    async def websocket(
        self, path: str, query: Sequence[tuple[str, str]], *, protocols: Sequence[str], message_bytes_max: int
    ) -> aiohttp.ClientWebSocketResponse:
        """Open a WebSocket, such as that of `pods/exec`. The caller closes it. Raises Interrupted."""
        session, current, headers = await self._current()
        # aiohttp follows redirects here, with the headers and the client certificate, and has no other way to refuse.
        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(_refuse_redirect)
        guarded = aiohttp.ClientSession(
            connector=session.connector,
            connector_owner=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=session.headers,
            trust_env=False,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            max_headers=_HEADERS_MAX,
            trace_configs=[trace],
        )
        try:
            return await guarded.ws_connect(
                current.host + path,
                params=list(query),
                protocols=protocols,
                headers=headers,
                ssl=self._ssl,
                server_hostname=current.server_name or None,
                proxy=current.proxy or None,
                max_msg_size=message_bytes_max,
            )
        except aiohttp.WSServerHandshakeError as error:
            raise Interrupted(Failure.REJECTED, f"status {error.status} instead of a WebSocket") from error
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            raise _interrupted(error) from error
        finally:
            guarded.detach()

    async def _refresh(self) -> None:
        """Load what is about to expire, or has changed. What fails is logged and counted, and the old stays in use."""
        current = self._access
        if current is None:
            raise RuntimeError("the session to the API server is not open")
        is_time_to_look = self._clock() - self._looked_at >= _LOOK_SECONDS
        is_expiring = (
            current.expires_at is not None and self._wall_clock() >= current.expires_at - _EXPIRY_MARGIN_SECONDS
        )
        if not is_expiring and not is_time_to_look:
            return
        self._looked_at = self._clock()
        with contextlib.suppress(access.AccessError):
            if is_expiring or current.has_changed():
                await self.reload()
            elif current.token_file:
                self._read_token(current)

    def _read_token(self, current: access.Access) -> None:
        try:
            self._authorization = f"Bearer {access.read_token(current.token_file)}"
        except access.AccessError as error:
            self._complain(error)
            raise
        self._stop_complaining()

    async def _load_access(self) -> None:
        self._loaded_at = self._looked_at = self._clock()
        try:
            await self._try_to_load_access()
        except access.AccessError as error:
            self._complain(error)
            raise
        except Exception as error:  # files and plugins are not ours: whatever they cause, the old access stays in use
            _log.exception("loading the credentials failed")
            self._complain(error)
            raise access.AccessError(f"the credentials cannot be loaded: {type(error).__name__}") from error
        self._stop_complaining()
        self.loads += 1

    async def _try_to_load_access(self) -> None:
        loaded = await self._load()
        context = access.make_ssl_context(loaded)
        try:
            yarl.URL(loaded.host)
            proxy = str(yarl.URL(loaded.proxy).with_user(None)) if loaded.proxy else ""
        except ValueError as error:
            raise access.AccessError(f"address of the API server or its proxy, of {loaded.source}: {error}") from error
        authorization = loaded.authorization
        if loaded.token_file:
            try:
                authorization = f"Bearer {access.read_token(loaded.token_file)}"
            except access.AccessError as error:
                if not authorization:
                    raise
                _log.warning("the token file cannot be read, using the token of the kubeconfig", error=str(error))
        if self._access is None or loaded.host != self._access.host:
            _log.info(
                "using the API server", host=loaded.host, source=loaded.source, **({"proxy": proxy} if proxy else {})
            )
        if loaded.warnings != self._warned:
            for warning in loaded.warnings:
                _log.warning(warning, source=loaded.source)
            self._warned = loaded.warnings
        # Open connections keep the old credentials; new connections use the new ones.
        self._access, self._ssl, self._authorization = loaded, context, authorization

    def _complain(self, error: Exception) -> None:
        self.load_failures += 1
        if self._access is not None and not self._complained:
            self._complained = True
            _log.warning("the credentials cannot be loaded again, keeping the old ones", error=str(error))

    def _stop_complaining(self) -> None:
        if self._complained:
            self._complained = False
            _log.info("the credentials could be loaded again")


@contextlib.asynccontextmanager
async def deadline(seconds: float, what: str) -> AsyncIterator[None]:
    """Limit the time of the block. `what` is missing when it passes. Raises Interrupted (DEADLINE)."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise Interrupted(Failure.DEADLINE, f"{what} within {seconds:g} s") from error


def close_response(response: aiohttp.ClientResponse) -> None:
    """Close a response, and its connection at once if the body was not read to the end.

    aiohttp alone would close a TLS connection in the background, and wait up to 30 s for the API server's goodbye.
    """
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()
    response.close()


async def read_chunk(response: aiohttp.ClientResponse) -> bytes:
    """Read what has arrived of the body, at least one byte. Empty at the end of the body. Raises Interrupted."""
    try:
        return await response.content.readany()
    except (aiohttp.ClientError, OSError) as error:
        raise _interrupted(error) from error


async def read_body(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    """Read the whole body. Raises Interrupted, with TOO_LARGE if the body is longer than the limit."""
    if (response.content_length or 0) > limit_bytes:
        raise _too_large(limit_bytes)
    body = bytearray()
    while chunk := await read_chunk(response):
        body += chunk
        if len(body) > limit_bytes:
            raise _too_large(limit_bytes)
    return bytes(body)


async def read_beginning(response: aiohttp.ClientResponse, limit_bytes: int, *, seconds: float) -> bytes:
    """Read the beginning of an error's body, for the log. Return what has arrived in time, even if reading fails."""
    body = bytearray()
    try:
        async with deadline(seconds, "no whole body of an error"):
            while len(body) < limit_bytes and (chunk := await read_chunk(response)):
                body += chunk
    except Interrupted as error:
        _log.debug("reading the body of an error answer failed", detail=error.detail)
    return bytes(body[:limit_bytes])


def retry_after_seconds(response: aiohttp.ClientResponse) -> float:
    """Return the Retry-After header in seconds. 0 if it is absent or a date (the API server never sends a date)."""
    text = response.headers.get("Retry-After", "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0.0


def _refuse_encodings(response: aiohttp.ClientResponse) -> None:
    """Raise Interrupted for a body that is not sent as it is."""
    for header, plain in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
        values = ", ".join(response.headers.getall(header, ()))
        if values and values.strip().lower() != plain:
            raise Interrupted(
                Failure.MALFORMED,
                f"{response.url.path}: the answer has {header} {values[:_SHOWN_CHARS]!r}, which was not asked for",
            )


def _too_large(limit_bytes: int) -> Interrupted:
    return Interrupted(Failure.TOO_LARGE, f"the list page is larger than {limit_bytes} bytes")


async def _refuse_redirect(
    _session: aiohttp.ClientSession, _context: object, redirected: aiohttp.TraceRequestRedirectParams
) -> None:
    raise Interrupted(Failure.REJECTED, f"status {redirected.response.status}: redirects are not followed")


def _interrupted(error: Exception) -> Interrupted:
    detail = _detail(error)[:_DETAIL_CHARS_MAX] or type(error).__name__
    # Check ConnectionTimeoutError first: it is also a TimeoutError, but means no half-open stream.
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)) or isinstance(error.__cause__, ssl.SSLError):
        return Interrupted(Failure.CREDENTIALS, f"TLS: {detail}")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Interrupted(Failure.NETWORK, f"no connection within {_CONNECT_SECONDS:.0f} s")
    if isinstance(error, TimeoutError):
        return Interrupted(Failure.IDLE, "no byte for too long: the connection is half open")
    if isinstance(error, aiohttp.ClientPayloadError):
        return Interrupted(Failure.TRUNCATED, detail)
    is_closed = isinstance(error, (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, ConnectionError))
    if is_closed and not isinstance(error, aiohttp.ClientConnectorError):
        return Interrupted(Failure.DISCONNECTED, detail)
    return Interrupted(Failure.NETWORK, detail)


def _detail(error: Exception) -> str:
    """What an operator needs to know of a connection that could not be made. The library shows its own objects."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        problem = getattr(error.certificate_error, "verify_message", "") or error.certificate_error
        return f"{error.host}:{error.port}: certificate verify failed: {problem}"
    if isinstance(error, aiohttp.ClientConnectorError):
        what, cause = f"{error.host}:{error.port}", error.os_error
        if isinstance(error, aiohttp.ClientProxyConnectionError):
            what = f"proxy {what}"
        if isinstance(cause, ssl.SSLError):
            return f"{what}: {tls_contexts.reason(cause)}"
        is_named = isinstance(cause, socket.gaierror) or not cause.errno
        return f"{what}: {(cause.strerror or str(cause)) if is_named else os.strerror(cause.errno or 0)}"
    return str(error)


def _keepalive_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    result = socket.socket(family, kind, protocol)
    result.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE_OPTIONS:
        result.setsockopt(socket.IPPROTO_TCP, option, value)
    return result
