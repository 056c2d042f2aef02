"""The hub's channels, and those that are wanted and have nothing to serve yet."""

from collections.abc import Mapping

from cache.feeds import feed, selection
from protocol import formats, subscriptions
from typha.hub import policy
from typha.hub.channel import ChannelKey, HubChannel, Source
from typha.ipc import selections


class Channels(dict[ChannelKey, HubChannel]):
    """All open channels. `feeds` and `opened_selections` are those of the hub, and change."""

    def __init__(
        self,
        feeds: Mapping[str, feed.Feed],
        opened_selections: Mapping[tuple[str, subscriptions.Subscription], selection.Selection],
        limits: policy.HubPolicy,
    ) -> None:
        super().__init__()
        self._feeds = feeds
        self._selections = opened_selections
        self._policy = limits
        self._by_number: dict[int, HubChannel] = {}
        self._next_number = 1
        self.wanted: dict[ChannelKey, str] = {}
        """Channels to be opened as soon as there is something to serve, in the order in which they were asked for, and
        who asked."""

    def numbered(self, number: int) -> HubChannel | None:
        """The channel of that number, if it is open."""
        return self._by_number.get(number)

    def of(self, source: Source) -> list[HubChannel]:
        """The channels of a feed or selection."""
        return [channel for channel in self.values() if channel.feed is source]

    @property
    def used(self) -> set[tuple[str, subscriptions.Subscription | None]]:
        """Feed and subscription of each channel, open or wanted."""
        return {(name, subscription) for name, _, subscription in (*self, *self.wanted)}

    def want(self, key: ChannelKey, asker: str) -> bool:
        """Notes that a channel is wanted. False if it has a subscription for which there is no room."""
        name, _, subscription = key
        if subscription is not None:
            askers = self._askers()
            asker = askers.get((name, subscription), asker)
            if (name, subscription) not in askers and not selections.has_room(
                askers.values(), asker, places=self._policy.selections_max
            ):
                return False
        self.wanted[key] = asker
        return True

    def withdraw_unknown(self) -> None:
        """Forgets wishes for feeds that there are not."""
        self.wanted = {key: asker for key, asker in self.wanted.items() if key[0] in self._feeds}

    def open_wanted(self) -> list[HubChannel]:
        """Opens the wanted channels that have something to serve, and returns them."""
        opened = []
        for key in list(self.wanted):
            source = self._source_of(key)
            if source is None or not source.synced_once:
                continue
            asker = self.wanted.pop(key)
            encoder = formats.make_encoder(key[1], max_frame_bytes=self._policy.max_frame_bytes)
            channel = HubChannel(self._next_number, source, encoder, self._policy, asker=asker)
            self._next_number += 1
            self[key] = self._by_number[channel.number] = channel
            opened.append(channel)
        return opened

    def remove(self, channel: HubChannel) -> None:
        """Lets go of a channel and its files."""
        del self[channel.key], self._by_number[channel.number]
        channel.close()

    def close(self) -> None:
        """Lets go of all."""
        for channel in list(self.values()):
            self.remove(channel)

    def _source_of(self, key: ChannelKey) -> Source | None:
        name, _, subscription = key
        return self._feeds.get(name) if subscription is None else self._selections.get((name, subscription))

    def _askers(self) -> dict[tuple[str, subscriptions.Subscription], str]:
        """Who has brought each subscription: the address of a client."""
        known = {key: channel.asker for key, channel in self.items()} | self.wanted
        return {(name, wanted): asker for (name, _, wanted), asker in known.items() if wanted is not None}
