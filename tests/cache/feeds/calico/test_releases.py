"""Which projection each agent gets: every release and hello that there has been, and any text."""

import re
from collections.abc import Iterator, Sequence

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cache.feeds.calico import releases
from cache.feeds.calico.releases import Release
from protocol.gob import encoder as gob_encoder
from protocol.gob import scalars, schema
from protocol.typha import codec, connection, encoder, messages
from tests import wire
from tests.harness.repository import DOCS

LAST_PATCHES = {f"3.{20 + number}": last for number, last in enumerate((6, 6, 5, 5, 6, 2, 5, 5, 5, 7, 7, 7, 1))}
"""Every release from 3.20 to August 2026: patches 0 to this one."""
FIRST_WITH_FLAG = 32
SERVED = {release.value: release for release in Release}


def minor_of(release: str) -> int:
    return int(release.partition(".")[2])


@pytest.mark.parametrize(("version", "flag", "expected"), [
    (f"v{release}.{patch}", minor_of(release) >= FIRST_WITH_FLAG, SERVED.get(release))
    for release, last in LAST_PATCHES.items()
    for patch in range(last + 1)
])  # fmt: skip
def test_every_release(version: str, flag: bool, expected: Release | None) -> None:
    assert releases.choose(version, flag).release is expected
    if expected is None:
        with pytest.raises(ValueError, match=r"expected release 3\.29 or later"):
            releases.parse_release(version)
    else:
        assert releases.parse_release(version) is expected


@pytest.mark.parametrize(("version", "with_flag", "without_flag"), [
    # Builds from branches, as `git describe` names them.
    ("v3.34.0-0.dev-67-g87c15906f20c", Release.NEWEST, Release.V3_31),
    ("v3.34.0-0.dev", Release.NEWEST, Release.V3_31),
    ("v3.33.0-0.dev-1478-g6609dea54713", Release.V3_32, Release.V3_31),
    ("v3.33.0-0.dev-508-g4aaf680a261f-dirty", Release.V3_32, Release.V3_31),
    ("v3.32.1-125-gde60d98e97a7", Release.V3_32, Release.V3_31),
    ("v3.32.0-0.dev-384-g790c866c9d35", Release.V3_32, Release.V3_31),
    ("v3.32.0-0.dev-383-g57188b6d2bd3", Release.V3_32, Release.V3_31),
    ("v3.31.7-2-g3cdeae8f7ace", Release.V3_32, Release.V3_31),
    ("v3.31.0-0.dev", Release.V3_32, Release.V3_30),
    ("v3.30.7-31-g39d0ca806c1e-dirty", Release.V3_32, Release.V3_30),
    ("v3.30.0-0.dev-462-ge9e5419bff99", Release.V3_32, Release.V3_29),
    ("v3.29.7-1-g4a6c74b04212", Release.V3_32, Release.V3_29),
    ("v3.29.0-0.dev-400-g3d8faf0dd07d", Release.V3_32, None),
    ("v3.24.2-0.dev", Release.V3_32, None),
    ("v3.21.3", Release.V3_32, None),
    # Releases to come, other spellings, and what others add.
    ("v3.33.0", Release.NEWEST, Release.V3_31),
    ("v3.33.0-dirty", Release.NEWEST, Release.V3_31),
    ("v3.33.1-0.dev", Release.NEWEST, Release.V3_31),
    ("v3.33.0-rc1", Release.V3_32, Release.V3_31),
    ("v3.100.0", Release.NEWEST, Release.V3_31),
    ("v4.0.0-0.dev-3-gabcdef123456", Release.NEWEST, Release.V3_31),
    ("3.31.7", Release.V3_32, Release.V3_31),
    ("v3.31", Release.V3_32, Release.V3_31),
    ("v3.31.7-acme.2", Release.V3_32, Release.V3_31),
    ("v3.29.1+acme", Release.V3_32, Release.V3_29),
    ("v3.22.0-1.0-calient-0.dev-741-gde13c547862d", Release.V3_32, None),
    ("v3.21.0-1.0", Release.V3_32, None),
    ("v2.6.12", Release.V3_32, None),
    # No version: confd up to 3.30, builds without flags, shallow clones, and what only looks like one.
    ("", Release.V3_32, Release.V3_31),
    ("<unknown>", Release.V3_32, Release.V3_31),
    ("39d0ca806c1e", Release.V3_32, Release.V3_31),
    ("39d0ca806c1e-dirty", Release.V3_32, Release.V3_31),
    ("master", Release.V3_32, Release.V3_31),
    ("loadtest", Release.V3_32, Release.V3_31),
    ("v3", Release.V3_32, Release.V3_31),
    ("v3.", Release.V3_32, Release.V3_31),
    ("v3.31.7.1", Release.V3_32, Release.V3_31),
    ("v3.33.0 ", Release.V3_32, Release.V3_31),
    (" v3.28.0", Release.V3_32, Release.V3_31),
    ("V3.33.0", Release.V3_32, Release.V3_31),
    ("v3.٣٣.0", Release.V3_32, Release.V3_31),
    ("v3.33333.0", Release.V3_32, Release.V3_31),
    ("v-3.33.0", Release.V3_32, Release.V3_31),
    ("v3.33.0\n", Release.V3_32, Release.V3_31),
])  # fmt: skip
def test_other_versions(version: str, with_flag: Release, without_flag: Release | None) -> None:
    assert releases.choose(version, True).release is with_flag
    assert releases.choose(version, False).release is without_flag


def test_only_the_start_of_a_version_is_looked_at() -> None:
    tail = "-" + "x" * 1_000_000
    assert releases.choose("v3.28.1" + tail, False).release is None
    overrides = [("*y", Release.V3_29), ("*x", Release.V3_31)]
    assert releases.choose("v3.28.1" + tail + "y", False, overrides).release is Release.V3_31


OVERRIDES = st.lists(st.tuples(st.text(alphabet="v3.*?[]-1", max_size=12), st.sampled_from(Release)), max_size=4)
LIKE_VERSIONS = st.from_regex(r"v?[0-9]{0,5}\.?[0-9]{0,5}\.?[0-9]{0,3}[-+.]?[0-9a-z.-]*")


@given(st.text() | LIKE_VERSIONS, st.booleans(), OVERRIDES)
@example("v3.33.0", False, [("*", Release.NEWEST)])
def test_an_agent_is_never_given_keys_that_it_cannot_parse(
    version: str, flag: bool, overrides: list[releases.Override]
) -> None:
    for tried in ([], overrides):
        choice = releases.choose(version, flag, tried)
        assert choice.reason.isprintable()
        if not flag:
            assert choice.release is None or not choice.release.has_modern_policy_keys
        elif not tried:
            assert choice.release in (Release.V3_32, Release.NEWEST)
        else:
            assert choice.release is not None


@given(st.text() | LIKE_VERSIONS)
def test_a_release_is_one_that_agents_of_this_version_get(version: str) -> None:
    try:
        release = releases.parse_release(version)
    except ValueError:
        return
    choice = releases.choose(version, release.has_modern_policy_keys)
    assert version == "newest" or choice.release is release


@pytest.mark.parametrize(("text", "expected"), [
    ("v3.31.7", Release.V3_31),
    ("v3.30.7", Release.V3_30),
    ("3.32", Release.V3_32),
    ("v3.33.0", Release.NEWEST),
    ("newest", Release.NEWEST),
    ("v3.34.0-0.dev-67-g87c15906f20c", Release.NEWEST),
    ("v3.32.0-0.dev-12-g39d0ca806c1e", Release.V3_31),
])  # fmt: skip
def test_releases_by_name(text: str, expected: Release) -> None:
    assert releases.parse_release(text) is expected


@pytest.mark.parametrize("text", ["", "master", "3", "v3.x", "x" * 1000])
def test_what_is_no_release(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected a release such as v3\.31\.7, 3\.31 or newest, not '"):
        releases.parse_release(text)


def test_the_first_override_that_the_agent_can_use_decides() -> None:
    overrides = releases.parse_overrides(" v3.2[0-8].*=3.29, *-acme*=3.31,=3.29 ")
    assert overrides == (("v3.2[0-8].*", Release.V3_29), ("*-acme*", Release.V3_31), ("", Release.V3_29))
    assert releases.choose("v3.28.5", False, overrides).release is Release.V3_29
    assert releases.choose("v3.28.5-acme", False, overrides).release is Release.V3_29
    assert releases.choose("v3.33.0-acme", True, overrides).release is Release.V3_31
    assert releases.choose("v3.19.4", False, overrides).release is None
    assert releases.choose("", False, overrides).release is Release.V3_29
    newest_first = [("*", Release.NEWEST), ("*", Release.V3_29)]
    assert releases.choose("v3.31.7", True, newest_first).release is Release.NEWEST
    assert releases.choose("v3.31.7", False, newest_first).release is Release.V3_29


@given(st.lists(st.tuples(st.text(alphabet="v3.*?[]-=", max_size=12).map(str.strip), st.sampled_from(Release))))
def test_overrides_are_read_back(overrides: list[releases.Override]) -> None:
    text = ", ".join(f"{pattern}={release.value}" for pattern, release in overrides)
    assert releases.parse_overrides(text) == tuple(overrides)


@pytest.mark.parametrize(("text", "part"), [
    ("v3.28.*", "v3.28.*"),
    ("v3.28.*=3.28", "v3.28.*=3.28"),
    ("v3.28.*=3.29,", ""),
    ("*=newest", "*=newest"),
])  # fmt: skip
def test_overrides_that_cannot_be_read(text: str, part: str) -> None:
    expected = f"expected pattern=release with a release of 3.33, 3.32, 3.31, 3.30, 3.29, not {part!r}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        releases.parse_overrides(text)


def test_an_override_has_a_limit() -> None:
    with pytest.raises(ValueError, match="at most 100 characters"):
        releases.parse_overrides("x" * 101 + "=3.29")
    assert releases.parse_overrides("  ") == ()


# The hellos on the wire: which members the clients of a release have, in the order of their struct.

OLDEST_MEMBERS = ("Hostname", "Info", "Version", "SyncerType")
MEMBERS = {
    "3.20 to 3.24": OLDEST_MEMBERS,
    "3.25 to 3.31": (*OLDEST_MEMBERS, "SupportsDecoderRestart", "SupportedCompressionAlgorithms", "ClientConnID"),
    "3.32 and later": tuple(field.name for field in codec.CLIENT_HELLO.fields),
}
NEWEST_HELLO = "client-hello/goclient-tx-felix.bin"


def recorded_hello() -> messages.ClientHello:
    server = connection.Connection(connection.Role.SERVER)
    server.receive_data(wire.load(NEWEST_HELLO))
    hello = server.next_event()
    assert isinstance(hello, messages.ClientHello)
    return hello


def bodies(data: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        split = scalars.split_uint(data, position)
        assert split is not None
        length, start = split
        position = start + length
        yield data[start:position]


def as_go_sends_it(hello: messages.ClientHello, members: Sequence[str]) -> bytes:
    """A hello with only these members, as Go's encoder writes it: a type is defined where a value first needs it."""
    fields = [field for field in codec.CLIENT_HELLO.fields if field.name in members]
    struct = schema.Struct("MsgClientHello", fields, messages.ClientHello)
    name = codec.NAME_PREFIX + struct.name.encode()
    slices = [field.kind for field in fields if isinstance(field.kind, schema.Slice)]
    kinds: list[schema.Defined] = [codec.ENVELOPE, struct, *slices]
    types = gob_encoder.Encoder(kinds, {messages.ClientHello: (name, struct)})
    envelope, first, *more = bodies(types.definitions)
    (message,) = bodies(types.message(codec.ENVELOPE, hello))
    named = message.index(name) + len(name)
    parts = (envelope, message[:named] + first, *more, message[named:])
    return b"".join(gob_encoder.frame(part) for part in parts)


def test_the_newest_form_is_what_the_original_sends() -> None:
    assert wire.load(NEWEST_HELLO).startswith(as_go_sends_it(recorded_hello(), MEMBERS["3.32 and later"]))


@pytest.mark.parametrize("version", ["", "v3.28.5"])
@pytest.mark.parametrize("syncer_type", ["", *messages.SYNCER_TYPES])
@pytest.mark.parametrize("members", MEMBERS.values(), ids=MEMBERS)
def test_hellos_of_all_releases_are_understood(members: Sequence[str], syncer_type: str, version: str) -> None:
    full = msgspec.structs.replace(recorded_hello(), syncer_type=syncer_type, version=version)
    server = connection.Connection(connection.Role.SERVER)
    received = []
    for byte in as_go_sends_it(full, members):
        server.receive_data(bytes((byte,)))
        received.append(server.next_event())
    assert all(message is None for message in received[:-1])
    hello = received[-1]
    assert isinstance(hello, messages.ClientHello)
    can_restart = "SupportsDecoderRestart" in members
    assert hello == msgspec.structs.replace(
        full,
        supports_decoder_restart=can_restart,
        supported_compression_algorithms=("snappy",) if can_restart else (),
        supports_modern_policy_keys="SupportsModernPolicyKeys" in members,
        client_connection_id=full.client_connection_id if can_restart else 0,
    )
    assert "node-a" in hello.agent
    assert server.accept() == (encoder.SNAPPY if can_restart else encoder.PLAIN)


# The page.

ROW = re.compile(r"^\| `(?P<version>[^`]*)` \| (?P<flag>yes|no) \| (?P<projection>refused|[0-9.]+) \|", re.MULTILINE)


def test_the_page_tells_the_choices() -> None:
    rows = ROW.findall((DOCS / "reference/agent-releases.md").read_text("utf-8"))
    assert len(rows) >= 10
    assert {projection for _, _, projection in rows} == {"refused", *(release.value for release in Release)}
    for version, flag, projection in rows:
        release = releases.choose(version, flag == "yes").release
        assert (release.value if release else "refused") == projection, version
