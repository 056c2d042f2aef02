"""Settings of a simulated API server."""

import dataclasses
import enum


class WatchListMode(enum.Enum):
    """The answer to a watch with sendInitialEvents."""

    ON = "on"  # initial events, then the bookmark that ends them
    OFF = "off"  # 422, as without the feature
    IGNORED = "ignored"  # initial events, without the bookmark that ends them


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSettings:
    """Behavior of the server; the defaults are kube-apiserver's, where it has them.

    A watch without timeoutSeconds lasts between `watch_timeout_seconds` and twice that. A request for a future version
    waits `fresh_wait_seconds`. A slow watch ends when it has more than `watch_buffer_bytes` unsent. Lists and watches
    of the paths in `forbidden` are answered with 403, also for types that are not installed, as RBAC comes first.
    """

    host: str = "127.0.0.1"
    port: int = 0
    seed: int = 0
    history_events: int = 10_000
    bookmark_period_seconds: float = 60.0
    watch_timeout_seconds: float = 1800.0
    fresh_wait_seconds: float = 3.0
    watch_buffer_bytes: int = 8 * 1024 * 1024
    watch_list: WatchListMode = WatchListMode.ON
    gzip: bool = True
    forbidden: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in ("bookmark_period_seconds", "watch_timeout_seconds", "watch_buffer_bytes", "history_events"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be greater than 0, not {getattr(self, name)}")
