"""The state that one of Calico's feeds must have: the API server's lists, converted as the service does."""

from typing import Final

from cache import objects, resources
from cache.feeds.calico import feed, syncers
from loadtest.verification import expected_state
from protocol import digest

_MAX_VALUE_BYTES: Final = 1 << 30


async def read(
    client: expected_state.ApiClient, feed_name: str, *, group: syncers.Group = syncers.Group.V3
) -> expected_state.ExpectedState:
    """The live keys of the feed, as of one moment only if nothing writes in between. Raises ApiError."""
    [spec] = [spec for spec in syncers.specs(group) if spec.name == feed_name]
    made = feed.CalicoFeed(spec, max_value_bytes=_MAX_VALUE_BYTES)
    for source in spec.sources:
        for raw in await client.items(source.type):
            identity = expected_state.identity(raw)
            event = objects.ObjectEvent(
                source.type,
                identity.namespace,
                identity.name,
                identity.revision,
                raw,
                _api_version(source.type),
                source.kind,
                objects.Origin.LIST,
            )
            made.apply(event)
    made.take()
    # Clients of Typha's protocol cannot tell an empty value from a missing one.
    live = {
        update.key: expected_state.Live(digest.pair_digest(update.key.encode(), update.value), "", update.revision)
        for update in (stored.as_update() for stored in made.store)
        if update.value
    }
    return expected_state.ExpectedState(live)


def _api_version(type: resources.ResourceType) -> str:
    return f"{type.group}/{type.version}" if type.group else type.version
