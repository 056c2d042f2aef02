"""Until when the certificates in the service's files are valid. A renewed file shows at the next scrape."""

from collections.abc import Mapping

from cache.kube import files, pem


class ExpiryTimes:
    """Of some files, by the settings that name them; without files that are not set, or have no usable certificate."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = {setting: path for setting, path in paths.items() if path}
        self._known: dict[str, tuple[files.Identity, float | None]] = {}

    def read(self) -> dict[tuple[str, ...], float]:
        """By setting: Unix seconds at which the first certificate in the file expires."""
        found = {(setting,): self._expiry(path) for setting, path in self._paths.items()}
        return {labels: seconds for labels, seconds in found.items() if seconds is not None}

    def _expiry(self, path: str) -> float | None:
        identity = files.identity(path)
        known = self._known.get(path)
        if known is None or known[0] != identity:
            known = self._known[path] = (identity, _first_expiry(path))
        return known[1]


def _first_expiry(path: str) -> float | None:
    try:
        return min(pem.not_after(one) for one in pem.certificates(files.read(path), with_headers=False))
    except (files.FileUnusable, pem.Malformed, ValueError):
        return None
