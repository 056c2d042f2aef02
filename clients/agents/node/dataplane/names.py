"""Names of chains and sets in the kernel. Pure."""

import hashlib

NAME_BYTES = 8
"""Length of the hash in a name: among a million names, two are the same with a probability of 3 in 100 million."""


def name_of(prefix: str, content: str) -> str:
    """A name that the kernel accepts, whatever the content is: keys of the feed can be longer than its limits."""
    return f"{prefix}-{hashlib.blake2b(content.encode(), digest_size=NAME_BYTES).hexdigest()}"
