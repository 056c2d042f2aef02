"""Files in shared memory: their write protection, and no open descriptors."""

import errno
import fcntl
import os

import pytest

from cache.state import memfile
from tests.harness import channel_harness


def test_a_growing_file_is_writable_only_by_its_mapping() -> None:
    before = channel_harness.descriptors_before()
    descriptor, mapping = memfile.create_growing("test", 8192)
    mapping[0:5] = b"first"
    assert channel_harness.changes_another_process_can_make(descriptor) == []
    mapping[5:8] = b"two"
    assert os.pread(descriptor, 10, 0) == b"firsttwo\0\0"
    mapping.close()
    os.close(descriptor)
    assert channel_harness.open_descriptors() == before


def test_a_sealed_file_is_read_only() -> None:
    descriptor = memfile.create_empty("test")
    assert channel_harness.changes_another_process_can_make(descriptor) != []
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"content", 0)
    memfile.seal(descriptor)
    assert channel_harness.changes_another_process_can_make(descriptor) == []
    assert os.pread(descriptor, 10, 0) == b"content"
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
    os.close(descriptor)


def test_descriptors_are_not_inherited() -> None:
    descriptor, mapping = memfile.create_growing("test", 4096)
    empty = memfile.create_empty("test")
    assert not os.get_inheritable(descriptor)
    assert not os.get_inheritable(empty)
    mapping.close()
    os.close(descriptor)
    os.close(empty)


def test_a_readonly_map_sees_later_writes_and_ends_with_its_last_view() -> None:
    before = channel_harness.descriptors_before()
    descriptor, mapping = memfile.create_growing("test", 4096)
    view = memfile.map_readonly(descriptor, 4096)
    mapping[100:104] = b"late"
    part = view[100:104]
    del view
    mapping.close()
    os.close(descriptor)
    assert part.readonly
    assert bytes(part) == b"late"
    del part
    assert channel_harness.open_descriptors() == before


def test_a_failed_creation_leaves_nothing_open() -> None:
    before = channel_harness.descriptors_before()
    with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
        memfile.create_growing("test", 1 << 62)
    assert channel_harness.open_descriptors() == before


def test_write_all_appends() -> None:
    descriptor = memfile.create_empty("test")
    content = os.urandom(300_000)
    memfile.write_all(descriptor, b"before")
    memfile.write_all(descriptor, content)
    memfile.write_all(descriptor, b"")
    assert os.pread(descriptor, 400_000, 0) == b"before" + content
    os.close(descriptor)


def test_a_shared_file_is_writable_by_both_and_has_a_fixed_size() -> None:
    before = channel_harness.descriptors_before()
    descriptor, mapping = memfile.create_shared("test", 8)
    os.pwrite(descriptor, b"theirs", 0)
    assert mapping[:6] == b"theirs"
    for size in (0, 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    mapping.close()
    os.close(descriptor)
    assert channel_harness.open_descriptors() == before


def test_a_held_descriptor_is_closed_at_the_end_of_the_last_hold() -> None:
    before = channel_harness.descriptors_before()
    held = memfile.create_empty("test")
    memfile.hold(held)
    memfile.hold(held)
    memfile.close(held)
    assert os.fstat(held).st_size == 0
    memfile.release(held)
    assert os.fstat(held).st_size == 0
    memfile.release(held)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(held)
    kept = memfile.create_empty("test")
    memfile.hold(kept)
    memfile.release(kept)
    assert os.fstat(kept).st_size == 0
    memfile.close(kept)
    assert channel_harness.open_descriptors() == before
