"""Answers to LIST by its options, the options of watch, and continue tokens. Pure."""

import base64
import binascii
import dataclasses
import enum
from collections.abc import Mapping
from typing import Final

import msgspec

from loadtest.apiserver import objects
from loadtest.apiserver.errors import ApiError, BadRequest, Expired, InvalidOptions, ResourceVersionTooLarge
from loadtest.apiserver.resources import Resource
from loadtest.apiserver.store import Page, Store

_TRUE: Final = ("true", "1")
_TOKEN_MARKER: Final = "meta.k8s.io/v1"
#: Version in a token that continues at the present state, because the snapshot of its list is forgotten.
INCONSISTENT: Final = -1


class Match(enum.Enum):
    """resourceVersionMatch."""

    UNSET = ""
    EXACT = "Exact"
    NOT_OLDER_THAN = "NotOlderThan"


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """Options of one request. `version` is None if resourceVersion is not set."""

    watch: bool = False
    version: int | None = None
    match: Match = Match.UNSET
    limit: int = 0
    token: str = ""
    bookmarks: bool = False
    initial_events: bool | None = None
    timeout_seconds: int = 0
    labels: frozenset[tuple[str, str]] = frozenset()
    """Labels that the objects of a list must have."""


class _Token(msgspec.Struct):
    v: str
    rv: int
    start: str


def parse(query: Mapping[str, str], *, watch_list: bool) -> Options:
    """Options of a list or watch. `watch_list`: sendInitialEvents is allowed. Raises BadRequest, InvalidOptions."""
    if query.get("fieldSelector"):
        raise BadRequest("fieldSelector is not simulated")
    initial = query.get("sendInitialEvents", "")
    match = query.get("resourceVersionMatch", "")
    if match not in {member.value for member in Match}:
        raise InvalidOptions("resourceVersionMatch", f"unsupported value {match!r}")
    options = Options(
        watch=query.get("watch", "").lower() in _TRUE,
        version=_number(query, "resourceVersion"),
        match=Match(match),
        limit=_number(query, "limit") or 0,
        token=query.get("continue", ""),
        bookmarks=query.get("allowWatchBookmarks", "").lower() in _TRUE,
        initial_events=initial.lower() in _TRUE if initial else None,
        timeout_seconds=_number(query, "timeoutSeconds") or 0,
        labels=_labels(query.get("labelSelector", "")),
    )
    if options.labels and (options.watch or options.limit or options.token):
        raise BadRequest("labelSelector is simulated for lists without pages only")
    if options.watch:
        _check_watch(options, watch_list=watch_list)
    else:
        _check_list(options)
    return options


def _number(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise BadRequest(f"{name}: {text[:40]!r} is not a number")
    return int(text)


def _labels(selector: str) -> frozenset[tuple[str, str]]:
    """The labels of a selector that consists of equalities."""
    labels = set()
    for part in selector.split(",") if selector else ():
        name, equals, value = part.partition("=")
        if not name or not equals or name.endswith("!") or value.startswith("="):
            raise BadRequest(f"labelSelector: only name=value is simulated, not {part[:60]!r}")
        labels.add((name, value))
    return frozenset(labels)


def _check_list(options: Options) -> None:
    if options.match is not Match.UNSET:
        if options.version is None:
            raise InvalidOptions("resourceVersionMatch", "needs a resourceVersion")
        if options.token:
            raise InvalidOptions("resourceVersionMatch", "not together with continue")
        if options.match is Match.EXACT and options.version == 0:
            raise InvalidOptions("resourceVersionMatch", "Exact is not possible for resourceVersion 0")
    if options.initial_events is not None:
        raise InvalidOptions("sendInitialEvents", "only for watch")
    if options.token and options.version:
        raise BadRequest("specifying resource version is not allowed when using continue")


def _check_watch(options: Options, *, watch_list: bool) -> None:
    if options.initial_events is None:
        if options.match is not Match.UNSET:
            raise InvalidOptions("resourceVersionMatch", "for watch only with sendInitialEvents")
        return
    if options.match is not Match.NOT_OLDER_THAN:
        raise InvalidOptions("resourceVersionMatch", "sendInitialEvents needs NotOlderThan")
    if not watch_list:
        raise InvalidOptions("sendInitialEvents", "the WatchList feature is off")


def continue_token(version: int, last_key: str) -> str:
    """Token for the objects after `last_key` in the snapshot at `version`."""
    token = msgspec.json.encode(_Token(_TOKEN_MARKER, version, f"{last_key}\0"))
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode()


def parse_token(text: str) -> tuple[int, str]:
    """Version and last key of a token. Raises BadRequest."""
    try:
        token = msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=_Token)
    except (ValueError, binascii.Error, msgspec.DecodeError) as error:
        raise BadRequest("continue key is not valid: not a token of this server") from error
    if token.v != _TOKEN_MARKER or not token.start.endswith("\0") or token.rv == 0 or token.rv < INCONSISTENT:
        raise BadRequest("continue key is not valid: incorrect version or start")
    return token.rv, token.start[:-1]


def least_version(asked: Options) -> int:
    """Version that the store must reach before it can answer the list; 0 for any."""
    return 0 if asked.token else asked.version or 0


def body(store: Store, resource: Resource, namespace: str, asked: Options) -> bytes:
    """The list as JSON. Raises Expired (also for tokens), ResourceVersionTooLarge, BadRequest, TypeUnknown.

    The list at version 0 comes from the cache and ignores `limit`, as in kube-apiserver.
    """
    page = _continued(store, resource, namespace, asked) if asked.token else _first(store, resource, namespace, asked)
    token = continue_token(page.version, page.last_key) if page.remaining else ""
    items = page.items
    if asked.labels:
        items = [item for item in items if asked.labels <= objects.labels(item).items()]
    return objects.list_body(resource, items, version=page.version, token=token, remaining=page.remaining)


def _first(store: Store, resource: Resource, namespace: str, asked: Options) -> Page:
    version = asked.version
    if version and version > store.version:
        raise ResourceVersionTooLarge(version, store.version)
    # Without a match, a list with a limit means exactly this version, and one without a limit also any later one.
    exact = asked.match is Match.EXACT or (asked.match is Match.UNSET and version and asked.limit)
    limit = 0 if version == 0 else asked.limit
    return store.page(resource, namespace=namespace, version=version if exact else None, limit=limit)


def _continued(store: Store, resource: Resource, namespace: str, asked: Options) -> Page:
    version, last_key = parse_token(asked.token)
    if version == INCONSISTENT:
        return store.page(resource, namespace=namespace, after=last_key, limit=asked.limit)
    if version > store.version:
        raise ResourceVersionTooLarge(version, store.version)
    try:
        return store.page(resource, namespace=namespace, version=version, after=last_key, limit=asked.limit)
    except Expired as error:
        raise token_expired(last_key) from error


def token_expired(last_key: str) -> ApiError:
    """410 for a token; metadata.continue of the answer continues at the present state."""
    return ContinueExpired(continue_token(INCONSISTENT, last_key))


class ContinueExpired(ApiError):
    """The snapshot of a paged list is forgotten; `token` continues at the present state, which is another one."""

    def __init__(self, token: str) -> None:
        message = (
            "The provided continue parameter is too old: start a new list, or continue with the token given here; "
            "the result is then a mix of two states."
        )
        super().__init__(410, "Expired", message)
        self.token = token

    def status(self) -> bytes:
        """The Status with the token in metadata.continue."""
        return super().status().replace(b'"metadata":{}', b'"metadata":{"continue":"%b"}' % self.token.encode(), 1)
