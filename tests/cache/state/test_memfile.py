"""Files in shared memory: who may change them, and that nothing is left open."""

import errno
import fcntl
import os

import pytest

from cache.state import memfile
from tests.harness import channel_harness


def test_a_growing_file_is_written_by_its_mapping_alone() -> None:
    before = channel_harness.open_descriptors()
    descriptor, mapping = memfile.create_growing("test", 8192)
    mapping[0:5] = b"first"
    assert channel_harness.changes_another_process_can_make(descriptor) == []
    mapping[5:8] = b"two"
    assert os.pread(descriptor, 10, 0) == b"firsttwo\0\0"
    mapping.close()
    os.close(descriptor)
    assert channel_harness.open_descriptors() == before


def test_a_sealed_file_is_written_by_nobody() -> None:
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


def test_no_descriptor_is_inherited_by_accident() -> None:
    descriptor, mapping = memfile.create_growing("test", 4096)
    empty = memfile.create_empty("test")
    assert not os.get_inheritable(descriptor)
    assert not os.get_inheritable(empty)
    mapping.close()
    os.close(descriptor)
    os.close(empty)


def test_a_readonly_map_sees_what_is_written_later_and_goes_with_its_last_view() -> None:
    before = channel_harness.open_descriptors()
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


def test_a_file_that_cannot_be_made_leaves_nothing_open() -> None:
    before = channel_harness.open_descriptors()
    with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
        memfile.create_growing("test", 1 << 62)
    assert channel_harness.open_descriptors() == before


def test_all_is_written_behind_what_was() -> None:
    descriptor = memfile.create_empty("test")
    content = os.urandom(300_000)
    memfile.write_all(descriptor, b"before")
    memfile.write_all(descriptor, content)
    memfile.write_all(descriptor, b"")
    assert os.pread(descriptor, 400_000, 0) == b"before" + content
    os.close(descriptor)


def test_a_shared_file_is_written_by_both_and_resized_by_nobody() -> None:
    before = channel_harness.open_descriptors()
    descriptor, mapping = memfile.create_shared("test", 8)
    os.pwrite(descriptor, b"theirs", 0)
    assert mapping[:6] == b"theirs"
    for size in (0, 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    mapping.close()
    os.close(descriptor)
    assert channel_harness.open_descriptors() == before
