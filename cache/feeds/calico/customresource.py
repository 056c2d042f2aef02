"""The common parts of Calico's custom resources: their API group, and the metadata annotation of group v1. Pure.

In `crd.projectcalico.org/v1` an annotation may contain the metadata that the API of `projectcalico.org/v3` shows. In
the v3 group the annotation has no meaning (docs/data-model.md, section 6).
"""

import enum
from collections.abc import Mapping
from typing import Any

import msgspec

from cache.feeds.calico import model, schema
from cache.feeds.calico.codecs import gojson, uids

METADATA_ANNOTATION = "projectcalico.org/metadata"
_OWN_API_VERSIONS = frozenset({"crd.projectcalico.org/v1", "projectcalico.org/v3"})


class Group(enum.Enum):
    """The API group of Calico's custom resources, and its one version."""

    V1 = "crd.projectcalico.org/v1"
    V3 = "projectcalico.org/v3"

    @property
    def group(self) -> str:
        """The name of the group, without the version."""
        return self.value.partition("/")[0]

    @property
    def version(self) -> str:
        """The name of the version, without the group."""
        return self.value.partition("/")[2]


class Metadata(msgspec.Struct, gc=False):
    """The metadata that is used in items which are not whole resources."""

    name: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


_decode = msgspec.json.Decoder().decode


def effective_metadata(metadata: Metadata, group: Group) -> Metadata:
    """Return name, labels and annotations as the API of v3 shows them.

    Raises:
        ConversionError: bad-metadata-annotation.
    """
    annotations = metadata.annotations or {}
    if group is Group.V3 or METADATA_ANNOTATION not in annotations:
        return metadata
    inner = annotation_metadata(annotations[METADATA_ANNOTATION])
    others = {key: value for key, value in annotations.items() if key != METADATA_ANNOTATION}
    return Metadata(
        inner.get("name") or metadata.name,
        _merged(metadata.labels, inner.get("labels")),
        _merged(others or None, inner.get("annotations")),
    )


def annotation_metadata(text: str) -> dict[str, Any]:
    """Return the metadata fields in the annotation's text, with owners translated.

    Raises:
        ConversionError: bad-metadata-annotation.
    """
    try:
        decoded = _decode(gojson.without_lone_surrogates(text))
        inner = {} if decoded is None else schema.read("metav1.ObjectMeta", decoded, fold_case=True)
        for owner in inner.get("ownerReferences") or ():
            if owner.get("apiVersion") in _OWN_API_VERSIONS:
                owner["apiVersion"] = Group.V3.value
                owner["uid"] = uids.reversed_uid(owner.get("uid", ""))
    except (ValueError, RecursionError) as error:  # from JSON, the schema or a UID
        raise model.ConversionError("bad-metadata-annotation", f"{METADATA_ANNOTATION}: {error}") from error
    return inner


def _merged(outer: Mapping[str, str] | None, inner: Mapping[str, str] | None) -> dict[str, str] | None:
    return None if outer is None and not inner else {**(outer or {}), **(inner or {})}
