"""From envelopes to what the sink gets: only real differences of the view. Pure."""

from cache import objects, resources
from cache.watch import decoding, requests, view
from cache.watch.counters import WatchCounters


class Emitter:
    """Holds the view of one type and tells the sink of each change to it, in the same step."""

    def __init__(
        self,
        type: resources.ResourceType,
        sink: objects.WatchSink,
        *,
        counters: WatchCounters,
        notify: requests.Notify,
    ) -> None:
        self._type = type
        self._sink = sink
        self._counters = counters
        self._notify = notify
        self.view = view.View()

    def upsert(
        self,
        envelope: decoding.Envelope,
        raw: bytes,
        origin: objects.Origin,
        *,
        api_version: str = "",
        kind: str = "",
    ) -> str:
        """Takes in a live object; returns its identity, empty if it has none that can be used.

        `api_version` and `kind` stand for what the object itself does not say.
        """
        self._counters.events += 1
        metadata = envelope.metadata
        if not envelope.is_sane:
            self._reject(envelope)
            return ""
        identity = view.identity_of(metadata.namespace, metadata.name)
        if not self.view.observe(identity, envelope):
            self._counters.objects_unchanged += 1
            return identity
        self._sink.apply(
            objects.ObjectEvent(
                self._type,
                metadata.namespace,
                metadata.name,
                metadata.resource_version,
                raw,
                envelope.api_version or api_version,
                envelope.kind or kind,
                origin,
            )
        )
        return identity

    def remove(self, envelope: decoding.Envelope, raw: bytes, origin: objects.Origin) -> str:
        """Takes out an object that the API server says is deleted; returns its identity."""
        self._counters.events += 1
        metadata = envelope.metadata
        if not envelope.is_sane:
            self._reject(envelope)
            return ""
        identity = view.identity_of(metadata.namespace, metadata.name)
        if self.view.forget(identity):
            self._sink.delete(
                objects.ObjectEvent(
                    self._type,
                    metadata.namespace,
                    metadata.name,
                    metadata.resource_version,
                    raw,
                    envelope.api_version,
                    envelope.kind,
                    origin,
                )
            )
        return identity

    def sweep(self, doomed: list[str], *, count: int, version: str) -> None:
        """Takes out up to `count` of the identities, from the list's end: they were missing at `version`."""
        for identity in doomed[-count:]:
            if self.view.forget(identity):
                self._counters.objects_swept += 1
                namespace, _, name = identity.partition("/")
                self._sink.delete(
                    objects.ObjectEvent(self._type, namespace, name, version, None, "", "", objects.Origin.LIST)
                )
        del doomed[-count:]

    def _reject(self, envelope: decoding.Envelope) -> None:
        self._counters.objects_rejected += 1
        if self._counters.objects_rejected == 1:  # a server that sends one such object sends it again and again
            fields = {"name": envelope.metadata.name[:80], "namespace": envelope.metadata.namespace[:80]}
            self._notify(requests.Notice(requests.NoticeKind.OBJECT_REJECTED, "error", fields))
