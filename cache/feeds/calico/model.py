"""The interface of converters: one Kubernetes object in, items of Calico's key/value model out. Pure.

A converter depends on the object alone. It returns the object's items in the order in which they are sent. An item
without a value stands for a key that the object does not have now. Keys of an earlier state of the object that are not
returned at all are deleted first. A converter returns no items for an object that does not belong in the feed.

Converters of frequent kinds decode `event.raw` into msgspec structs (gc=False) with only the needed members. Others use
`members`, a dict.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import msgspec

from cache import objects

T = TypeVar("T")


class Item(msgspec.Struct, frozen=True, gc=False):
    """One key and its value, as the object alone determines them.

    `value` None: the key is absent, and is deleted if it was known. b"" is a value (the original's agents see none).
    `invalid` not empty: validation rejects the value for this reason. `value` must then be None, but the key counts as
    known: it is sent without a value, as new or updated. `warning` not empty: the item is sent as it is, and the object
    gets a line in the log. `is_older`: only agents of older releases may get the item (see `projections`); another item
    of the object may have the same key.
    """

    key: str
    value: bytes | None
    revision: str
    v3_resource_version: str = ""
    invalid: str = ""
    warning: str = ""
    is_older: bool = False


class ConversionError(ValueError):
    """The object has no items. The feed rejects it by name, and deletes its known keys."""

    def __init__(self, reason: str, detail: str) -> None:
        """`reason` is a short code (a metric label, such as bad-ip). `detail` says what is wrong, and where."""
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


Converter: TypeAlias = Callable[[objects.ObjectEvent], Sequence[Item]]
"""Raises ConversionError. `event.origin` says whether the object comes from a list (LIST, INITIAL) or from an event:
profiles differ by it."""

_NULL = "got `null`"
_ZEROS: dict[str, str | int] = {
    **dict.fromkeys(("labels", "annotations", "matchLabels"), ""),
    "sequenceNumberForAllocation": 0,
}
"""The members that are maps, and the value that Go reads for a null in them."""

_encode = msgspec.json.Encoder().encode
_decode_members = msgspec.json.Decoder(dict[str, Any]).decode


def members(event: objects.ObjectEvent) -> dict[str, Any]:
    """Decode the object to a dict, with the members in the API server's order.

    Raises:
        ConversionError: not a JSON object.
    """
    try:
        return _decode_members(event.raw or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConversionError("invalid-object", str(error)) from error


def typed(decoder: msgspec.json.Decoder[T], event: objects.ObjectEvent) -> T:
    """Decode the object to the decoder's struct. A null member counts as absent, as in Go.

    Raises:
        ConversionError: not JSON, or not of the struct's shape.
    """
    try:
        try:
            return decoder.decode(event.raw or b"")
        except msgspec.ValidationError as error:
            if _NULL not in str(error):
                raise
        return decoder.decode(_encode(_without_nulls(members(event))))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConversionError("invalid-object", str(error)) from error


def _without_nulls(value: Any, *, name: str = "") -> Any:
    if isinstance(value, list):
        return [_without_nulls(element) for element in value]
    if not isinstance(value, dict):
        return value
    if name in _ZEROS:
        zero = _ZEROS[name]
        return {key: zero if member is None else member for key, member in value.items()}
    return {key: _without_nulls(member, name=key) for key, member in value.items() if member is not None}


def escaped(name: str) -> str:
    """Return a name as a part of a key (docs/data-model.md, section 4: `esc`)."""
    return name.replace("%", "%25").replace("/", "%2f") if "%" in name or "/" in name else name
