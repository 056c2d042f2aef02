"""Which projection of feed felix an agent gets: chosen by its hello (docs/reference/agent-releases.md). Pure.

A projection is the felix feed as one release's own Typha sends it. The flag for modern policy keys decides first: an
agent without it can't parse such keys, and an agent with it needs at least 3.32. The version decides the rest:

| version text                                            | with the flag | without                            |
|---------------------------------------------------------|---------------|------------------------------------|
| `v3.33.0` and later, `v3.34.0-0.dev-67-g87c15906f20c`   | 3.33          | 3.31                               |
| `v3.33.0-0.dev...` (may still need `bird_ip`), `v3.32.*`| 3.32          | 3.31                               |
| `v3.32.0-0.dev...`, `v3.31.*`                           | 3.32          | 3.31                               |
| `v3.31.0-0.dev...`, `v3.30.*`                           | 3.32          | 3.30                               |
| `v3.30.0-0.dev...` (may enforce staged ones), `v3.29.*` | 3.32          | 3.29                               |
| `v3.29.0-0.dev...` (may ignore tiers), `v3.28.5`, older | 3.32          | refused: it would misread policies |
| empty, `<unknown>`, `39d0ca806c1e`, any other text      | 3.32          | 3.31                               |

A text after the number that is no commit count (`-12-g39d0ca806c1e`), `-dirty` or `+...` marks a preliminary build. A
preliminary build of `x.y.0` counts as the release before x.y: each boundary is crossed somewhere between the first
development build and the release, and for each the older side does less harm. Calico Enterprise has its own numbers
(`v3.22.0-1.0-calient-0.dev-741-gde13c547862d` is built on Calico 3.31). They are read as if they were Calico's, because
those of its releases (`v3.22.1`) can't be told from them.
"""

import dataclasses
import enum
import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from protocol.typha import messages

MAX_VERSION_CHARS = 100
"""How much of a version text is looked at. Real ones have up to 50 characters; a hostile one may have a megabyte."""


class Release(enum.Enum):
    """A projection of feed felix, newest first. The value is its first release, and the label in metrics."""

    NEWEST = "3.33"
    V3_32 = "3.32"
    V3_31 = "3.31"
    V3_30 = "3.30"
    V3_29 = "3.29"

    @property
    def has_modern_policy_keys(self) -> bool:
        """Whether policies have keys that only agents with the flag can parse."""
        return self in (Release.NEWEST, Release.V3_32)


def feed_name(release: Release) -> str:
    """Return the name of a release's felix feed."""
    return messages.FELIX if release is Release.NEWEST else f"{messages.FELIX}-{release.value}"


BY_FEED: Final[Mapping[str, Release]] = {feed_name(release): release for release in Release}
PROJECTIONS: Final = frozenset(BY_FEED) - {messages.FELIX}
"""The names of the older releases' feeds."""

Override: TypeAlias = tuple[str, Release]
"""A pattern for the version text, as in `fnmatch` (`*`, `?`, `[0-8]`, case counts), and what such agents get."""


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """What an agent gets."""

    release: Release | None
    """None: it is refused."""
    reason: str
    """Why, for the log. A fixed text; the caller adds the node and the version."""


FALLBACK_WITH_FLAG = Release.V3_32
"""For unknown versions with the flag. A newer agent skips the added `bird_ip` with a warning; a 3.32 agent that lacks
it withdraws WireGuard peers and routes."""
FALLBACK_WITHOUT_FLAG = Release.V3_31
"""For unknown versions without the flag. Both possible mistakes are rare. An agent of 3.30 or 3.31 that gets 3.29 lacks
baseline policies, local BGP peers and staged policies: it silently allows what its own Typha would have it deny. An
agent of 3.29 that gets 3.31 enforces staged policies, whose CRDs are those of 3.30 and later."""

_FIRST_VERSIONS = (
    ((3, 33, 1), Release.NEWEST),
    ((3, 32, 1), Release.V3_32),
    ((3, 31, 1), Release.V3_31),
    ((3, 30, 1), Release.V3_30),
    ((3, 29, 1), Release.V3_29),
)
"""The lowest version number (as in `_parse`) of each projection."""

_NUMBER = re.compile(r"v?([0-9]{1,4})\.([0-9]{1,4})(?:\.([0-9]{1,4}))?(?:([-+].*))?")
_BUILT_FROM_RELEASE = re.compile(r"(?:-[0-9]{1,6}-g[0-9a-f]{4,40})?(?:-dirty)?(?:\+.*)?")

_BY_VERSION = "by its version"
_BY_FLAG = "its version contradicts its support of modern policy keys"
_BY_OVERRIDE = "by an override for its version"
_UNKNOWN = "its version is unknown"
_TOO_OLD = "agents before 3.29 ignore tiers, and would enforce policies in the wrong order; an override can admit them"


def choose(version: str, supports_modern_policy_keys: bool, overrides: Sequence[Override] = ()) -> Choice:
    """What an agent of feed felix gets, by the version and the flag in its hello. Never raises.

    The first override that matches decides. One with keys that the agent can't parse is passed over, whatever it says:
    the node would be left without policies.
    """
    said = version[:MAX_VERSION_CHARS]
    for pattern, release in overrides:
        readable = supports_modern_policy_keys or not release.has_modern_policy_keys
        if readable and fnmatch.fnmatchcase(said, pattern):
            return Choice(release, _BY_OVERRIDE)
    number = _parse(said)
    if number is None:
        return Choice(FALLBACK_WITH_FLAG if supports_modern_policy_keys else FALLBACK_WITHOUT_FLAG, _UNKNOWN)
    by_number = _by_number(number)
    if supports_modern_policy_keys and (by_number is None or not by_number.has_modern_policy_keys):
        return Choice(Release.V3_32, _BY_FLAG)
    if by_number is None:
        return Choice(None, _TOO_OLD)
    if by_number.has_modern_policy_keys and not supports_modern_policy_keys:
        return Choice(Release.V3_31, _BY_FLAG)
    return Choice(by_number, _BY_VERSION)


def parse_release(text: str) -> Release:
    """The projection for agents of a release: `v3.31.7`, `3.31`, or `newest`.

    Raises:
        ValueError: this is no release, or one that is not served; the message says what was expected.
    """
    if text == "newest":
        return Release.NEWEST
    shown = repr(text[:MAX_VERSION_CHARS])
    number = _parse(text) if len(text) <= MAX_VERSION_CHARS else None
    if number is None:
        raise ValueError(f"expected a release such as v3.31.7, 3.31 or newest, not {shown}")
    release = _by_number(number)
    if release is None:
        raise ValueError(f"expected release 3.29 or later, not {shown}")
    return release


def parse_overrides(text: str) -> tuple[Override, ...]:
    """Overrides from a setting's text: `pattern=release`, comma-separated, such as `v3.2[0-8].*=3.29, *-acme*=3.31`.

    An empty pattern matches agents that name no version.

    Raises:
        ValueError: the message says what was expected.
    """
    return tuple(_parse_override(part.strip()) for part in text.split(",")) if text.strip() else ()


def _parse_override(part: str) -> Override:
    pattern, equals, label = (piece.strip() for piece in part.rpartition("="))
    by_label = {release.value: release for release in Release}
    if not equals or label not in by_label:
        raise ValueError(f"expected pattern=release with a release of {', '.join(by_label)}, not {part!r}")
    if len(pattern) > MAX_VERSION_CHARS:
        raise ValueError(f"expected a pattern of at most {MAX_VERSION_CHARS} characters, not {len(pattern)}")
    return pattern, by_label[label]


def _parse(version: str) -> tuple[int, int, int] | None:
    """Major and minor number, and 0 for a preliminary build of `x.y.0` or else 1. None if the text is no version."""
    match = _NUMBER.fullmatch(version)
    if match is None:
        return None
    major, minor, patch, rest = match.groups()
    is_preliminary = not _BUILT_FROM_RELEASE.fullmatch(rest or "")
    return int(major), int(minor), 0 if is_preliminary and int(patch or 0) == 0 else 1


def _by_number(number: tuple[int, int, int]) -> Release | None:
    """The projection for this version number; None for those that are too old."""
    return next((release for first, release in _FIRST_VERSIONS if number >= first), None)
