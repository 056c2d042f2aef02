"""Answers to LIST, by the rules of resourceVersion, resourceVersionMatch, limit and continue. Pure."""

from loadtest.apiserver import objects, options
from loadtest.apiserver.errors import ApiError, Expired, ResourceVersionTooLarge
from loadtest.apiserver.options import INCONSISTENT, Match, Options
from loadtest.apiserver.resources import Resource
from loadtest.apiserver.store import Page, Store


def least_version(asked: Options) -> int:
    """Version that the store must reach before it can answer the list; 0 for any."""
    return 0 if asked.token else asked.version or 0


def body(store: Store, resource: Resource, namespace: str, asked: Options) -> bytes:
    """The list as JSON. Raises Expired (also for tokens), ResourceVersionTooLarge, BadRequest, TypeUnknown.

    The list at version 0 comes from the cache and ignores `limit`, as in kube-apiserver.
    """
    page = _continued(store, resource, namespace, asked) if asked.token else _first(store, resource, namespace, asked)
    token = options.continue_token(page.version, page.last_key) if page.remaining else ""
    return objects.list_body(resource, page.items, version=page.version, token=token, remaining=page.remaining)


def _first(store: Store, resource: Resource, namespace: str, asked: Options) -> Page:
    version = asked.version
    if version and version > store.version:
        raise ResourceVersionTooLarge(version, store.version)
    # Without a match, a list with a limit means exactly this version, and one without a limit also any later one.
    exact = asked.match is Match.EXACT or (asked.match is Match.UNSET and version and asked.limit)
    limit = 0 if version == 0 else asked.limit
    return store.page(resource, namespace=namespace, version=version if exact else None, limit=limit)


def _continued(store: Store, resource: Resource, namespace: str, asked: Options) -> Page:
    version, last_key = options.parse_token(asked.token)
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
    return ContinueExpired(options.continue_token(INCONSISTENT, last_key))


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
