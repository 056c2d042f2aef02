"""Kubernetes' rules for names, labels and annotations, for validation (docs/data-model.md, section 7). Pure."""

import base64
import binascii
import functools
import re
from collections.abc import Mapping
from typing import Any

_DNS_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"{_DNS_LABEL}(?:\.{_DNS_LABEL})*")
_QUALIFIED = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?")
_PORT_NAME = re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?")
_MAX_SUBDOMAIN = 253
_MAX_NAME = 63
_MAX_PORT_NAME = 15
_MAX_ANNOTATION_BYTES = 256 * 1024
_WIREGUARD_KEY_BYTES = 32
_CACHE_ENTRIES = 8192


def is_subdomain(text: str) -> bool:
    """Return whether the text is a DNS subdomain of at most 253 characters."""
    return len(text) <= _MAX_SUBDOMAIN and _SUBDOMAIN.fullmatch(text) is not None


@functools.lru_cache(maxsize=_CACHE_ENTRIES)
def is_label_key(text: str) -> bool:
    """Return whether the text is a qualified name: an optional DNS subdomain and `/`, then up to 63 characters."""
    prefix, slash, name = text.rpartition("/")
    if slash and not is_subdomain(prefix):
        return False
    return len(name) <= _MAX_NAME and _QUALIFIED.fullmatch(name) is not None


@functools.lru_cache(maxsize=_CACHE_ENTRIES)
def is_label_value(text: str) -> bool:
    """Return whether the text is empty, or a name of at most 63 characters."""
    return not text or (len(text) <= _MAX_NAME and _QUALIFIED.fullmatch(text) is not None)


def is_port_name(text: str) -> bool:
    """Return whether it has 1 to 15 characters, contains a letter, and has no `-` at an end or next to another one."""
    return len(text) <= _MAX_PORT_NAME and _PORT_NAME.fullmatch(text) is not None


def is_wireguard_key(text: str) -> bool:
    """Return whether the text is the padded standard base64 of 32 bytes."""
    try:
        return len(base64.b64decode(text.replace("\n", "").replace("\r", ""), validate=True)) == _WIREGUARD_KEY_BYTES
    except (binascii.Error, ValueError):
        return False


def labels_problem(labels: Mapping[str, str]) -> str:
    """Return what is wrong with the labels. Empty if they are valid."""
    for key, value in labels.items():
        if not is_label_key(key):
            return f"not a label key: {key!r}"
        if not is_label_value(value):
            return f"not a label value: {value!r} of {key!r}"
    return ""


def metadata_problem(metadata: Mapping[str, Any]) -> str:
    """Return what is wrong with a resource's name, labels or annotations. Empty if they are valid."""
    name = metadata.get("name") or ""
    if name and not is_subdomain(name):
        return f"not a name: {name!r}"
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        if not is_label_key(key.lower()):
            return f"not an annotation key: {key!r}"
    if sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items()) > _MAX_ANNOTATION_BYTES:
        return f"annotations larger than {_MAX_ANNOTATION_BYTES} bytes"
    return labels_problem(metadata.get("labels") or {})
