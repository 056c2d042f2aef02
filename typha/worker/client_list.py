"""The list of a worker's clients, for operators: made in slices between turns, so that it delays no delivery.

Nothing is kept for it while nobody asks. Position and lag come from the cursor, and the bytes sent from the kernel.
"""

from collections.abc import Mapping

from cache.state import cursor
from protocol.typha import messages as typha_messages
from typha.ipc import messages
from typha.worker import channel as worker_channel
from typha.worker import client, policy, protocol_adapters, tls, tls_transport, transport

_FIXED_BYTES = 80
"""Of an encoded client, beside its texts."""
_NOBODY = protocol_adapters.Identity()


def _short(text: str) -> str:
    """At most as many bytes as characters may be in it: others make the list of a fleet too long for its time."""
    return text if text.isascii() else text.encode()[: messages.TEXT_CHARS_MAX].decode(errors="ignore")


class ClientList:
    """One answer to `ListClients`. Clients that come or go while it is made are not in it.

    Args:
        clients: all that are open, by descriptor; looked at again for each slice.
    """

    def __init__(
        self,
        request: int,
        clients: Mapping[int, client.Client],
        bytes_through: transport.Transport,
        limits: policy.Policy,
        now: float,
    ) -> None:
        self._request = request
        self._open = clients
        self._waiting = list(clients.values())
        self._transport = bytes_through
        self._policy = limits
        self._give_up_at = now + messages.LIST_SECONDS_MAX

    def is_too_late(self, now: float) -> bool:
        """Whether nobody waits for the rest any more."""
        return now > self._give_up_at

    def next_slice(self, now: float) -> messages.ClientSlice:
        """The next clients, up to a number of bytes."""
        found: list[messages.ConnectedClient] = []
        size_bytes = 0
        while self._waiting and size_bytes < messages.SLICE_BYTES:
            current = self._waiting.pop()
            if self._open.get(current.fd) is not current:
                continue  # closed since then
            one = self._describe(current, now)
            found.append(one)
            texts = (
                one.address,
                one.node,
                one.version,
                one.info,
                one.tls_name,
                one.release,
                one.feed,
                one.wire_format,
                one.subscription,
            )
            size_bytes += _FIXED_BYTES + sum(len(text.encode()) for text in texts)
        return messages.ClientSlice(self._request, found, not self._waiting)

    def _describe(self, current: client.Client, now: float) -> messages.ConnectedClient:
        channel = current.channel
        lag_bytes, lag_seconds, sequence = (0, 0.0, 0)
        if channel is not None:
            lag_bytes, lag_seconds, sequence = self._position(current, channel, now)
        identity = current.adapter.identity if current.adapter is not None else _NOBODY
        return messages.ConnectedClient(
            number=current.number,
            address=current.address,
            node=_short(identity.node),
            version=_short(identity.version),
            info=_short(identity.info),
            tls_name=self._tls_name(current),
            release=identity.release,
            feed=channel.feed if channel is not None else "",
            wire_format=channel.wire_format if channel is not None else "",
            state=current.state,
            lag_bytes=lag_bytes,
            lag_seconds=lag_seconds,
            sequence=sequence,
            bytes_sent=transport.kernel_sent_bytes(current.socket),
            age_seconds=max(0.0, now - current.connected_at),
            applied=-1 if current.applied is None else current.applied.up_to(),
            subscription=_subscription(channel),
        )

    def _tls_name(self, current: client.Client) -> str:
        if not isinstance(self._transport, tls_transport.TlsTransport):
            return ""
        name = tls.peer_name(self._transport.certificate(current.fd))
        return _short(typha_messages.printable(name, messages.TEXT_CHARS_MAX))

    def _position(
        self, current: client.Client, channel: worker_channel.WorkerChannel, now: float
    ) -> tuple[int, float, int]:
        """Lag in bytes and seconds, and the sequence that has been written. As in `WorkerChannel.report`, a client that
        does not read what its host takes lags, too."""
        end = channel.log.end
        match current.state:
            case cursor.CursorState.FOLLOWING:
                offset = current.offset
                lag_bytes, lag_seconds = end - offset, channel.age_of(offset, now)
                sequence = _sequence_before(channel, offset) or current.sequence
            case cursor.CursorState.CATCHING_UP:
                lag_bytes, lag_seconds = end - current.offset, now - current.behind_since
                sequence = current.sequence
            case cursor.CursorState.SNAPSHOT:
                snapshot = current.snapshot
                lag_bytes = end - snapshot.log_offset + current.read_length - current.position if snapshot else 0
                return max(0, lag_bytes), max(0.0, now - current.snapshot_at), 0
            case cursor.CursorState.HELD:
                return 0, max(0.0, now - current.connected_at), 0
            case _:
                return 0, 0.0, 0
        liveness = current.liveness
        if liveness.has_unread_probe(now, self._policy.unread_seconds):
            lag_bytes = max(lag_bytes, end - liveness.probed_offset)
            lag_seconds = max(lag_seconds, now - liveness.probed_at)
        return max(0, lag_bytes), max(0.0, lag_seconds), sequence


def _subscription(channel: worker_channel.WorkerChannel | None) -> str:
    if channel is None or channel.subscription is None:
        return ""
    return _short(typha_messages.printable(channel.subscription.label, messages.TEXT_CHARS_MAX))


def _sequence_before(channel: worker_channel.WorkerChannel, offset: int) -> int:
    """The sequence at the end of the last frame that ends at or before the offset; 0 if the log does not have it."""
    log = channel.log
    if not log.start <= offset <= log.end:
        return 0
    if offset < log.end:
        offset, _, _ = log.frame_at(offset)
    return log.sequence_at(offset)
