"""Internal: selects from a whole feed what a subscription asks for, where the server does not. Pure.

A server may not know subscriptions, or not put one in force. So that the application sees the same in any case, the
changes of the whole feed pass through here. A key that is selected no longer is a deletion.
"""

import msgspec

from clients import differ
from protocol import messages, subscriptions


def checked(subscription: subscriptions.Subscription, node: str) -> subscriptions.Subscription:
    """The subscription in the form that a hello may have.

    Raises:
        ValueError: a list is empty or too long, or the node that it is about is not named.
    """
    if subscription.own_node and not node:
        raise ValueError("own_node needs the name of the node")
    try:
        return msgspec.convert(msgspec.to_builtins(subscription.normalized()), subscriptions.Subscription)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error


class Selecting:
    """Passes on the selected part of each batch of a feed."""

    def __init__(self, subscription: subscriptions.Subscription, node: str) -> None:
        self._selects = subscriptions.Selector(subscription).selects
        self._node = node if subscription.own_node else None
        self._passed: set[str] = set()
        """Keys that the application has."""

    def restore(self, key: str) -> None:
        """The application begins with this key."""
        self._passed.add(key)

    def select(self, batch: differ.Batch) -> differ.Batch | None:
        """The part of a batch that is selected; None if nothing is."""
        updates = [selected for update in batch.updates if (selected := self._select(update)) is not None]
        refreshed = tuple(update for update in batch.refreshed if update.key in self._passed)
        if not updates and not refreshed and not batch.from_snapshot:
            return None
        return differ.Batch(tuple(updates), refreshed, from_snapshot=batch.from_snapshot)

    def _select(self, update: messages.Update) -> messages.Update | None:
        key, value = update.key, update.value
        was_passed = key in self._passed
        if value is not None and self._selects(key) and self._is_here(key, value):
            self._passed.add(key)
            kind = messages.UpdateType.UPDATED if was_passed else messages.UpdateType.NEW
            return update._replace(update_type=int(kind))
        if not was_passed:
            return None
        self._passed.discard(key)
        return messages.Update(key, None, update.revision, messages.UpdateType.DELETED)

    def _is_here(self, key: str, value: bytes) -> bool:
        return self._node is None or subscriptions.node_of(key, value) in (None, self._node)
