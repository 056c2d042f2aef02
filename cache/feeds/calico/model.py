"""What a converter takes and gives: one Kubernetes object in, items of Calico's key/value model out. Pure.

A converter is a function of the object alone. It returns the items of the object in the order in which they are sent;
an item without a value is a key that the object does not have (any more), in its place in the order. Keys that an
earlier state of the object had and that are not returned at all are deleted first. An object that is nothing to a
feed gives no items.

Kinds of which there are many decode `event.raw` into msgspec structs (gc=False) that name only what is needed;
others take `members`, a dict.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import msgspec

from cache import objects

T = TypeVar("T")


class Item(msgspec.Struct, frozen=True, gc=False):
    """One key and its value, as far as the object alone decides it.

    `value` None: the key is absent, deleted if it was known. b"" is a value (agents of the original see none).
    `invalid` non-empty: validation voids the value, for this reason; `value` must be None, and the key still counts
    as known: it is sent without a value, as new or updated. `warning` non-empty: the item is sent as it is, but
    its object deserves a line in the log.
    """

    key: str
    value: bytes | None
    revision: str
    v3_resource_version: str = ""
    invalid: str = ""
    warning: str = ""


class ConversionError(ValueError):
    """The object has no items: it is refused by name, and its keys are deleted if they were known."""

    def __init__(self, reason: str, detail: str) -> None:
        """`reason` is a short code (the label of a metric, such as bad-ip); `detail` says what is wrong, and where."""
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


Converter: TypeAlias = Callable[[objects.ObjectEvent], Sequence[Item]]
"""Raises ConversionError. `event.origin` tells a list (LIST, INITIAL) from an event: profiles differ by it."""

_NULL = "got `null`"
_ZEROS: dict[str, str | int] = {
    **dict.fromkeys(("labels", "annotations", "matchLabels"), ""),
    "sequenceNumberForAllocation": 0,
}
"""Maps, by the name of the member that they are, and what Go reads for a null in them."""

_encode = msgspec.json.Encoder().encode
_decode_members = msgspec.json.Decoder(dict[str, Any]).decode


def members(event: objects.ObjectEvent) -> dict[str, Any]:
    """The object as a dict, members in the API server's order.

    Raises:
        ConversionError: not a JSON object.
    """
    try:
        return _decode_members(event.raw or b"")
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConversionError("invalid-object", str(error)) from error


def typed(decoder: msgspec.json.Decoder[T], event: objects.ObjectEvent) -> T:
    """The object as the decoder's struct; a member that is null is an absent one, as Go reads it.

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
    except (msgspec.DecodeError, RecursionError) as error:
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
    """A name as a part of a key (docs/data-model.md, section 4: `esc`)."""
    return name.replace("%", "%25").replace("/", "%2f") if "%" in name or "/" in name else name
