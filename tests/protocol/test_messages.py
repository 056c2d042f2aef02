"""Names and representations that other programs see."""

from protocol import messages


def test_status_labels() -> None:
    labels = [status.label for status in messages.SyncStatus]
    assert labels == ["waiting", "resync", "in-sync", "catching-up"]


def test_messages_hide_their_content_from_logs() -> None:
    secret = messages.Update("/key", b"secret", "1", 1)
    assert "secret" not in repr(messages.Updates(1, 2, (secret,)))
    assert "secret" not in repr(messages.SnapshotChunk(0, 0, False, (secret,)))
