"""Settings of a simulated API server."""

import dataclasses
import enum


class WatchListMode(enum.Enum):
    """What a watch with sendInitialEvents gets."""

    ON = "on"  # initial events and the bookmark that ends them
    OFF = "off"  # 422, as with the feature switched off
    IGNORED = "ignored"  # initial events, never the bookmark that ends them


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSettings:
    """How the server behaves; defaults are kube-apiserver's where it has them.

    `watch_timeout_seconds` is the least life of a watch without timeoutSeconds, up to twice that by chance;
    `fresh_wait_seconds` how long a request for a future version waits; `watch_buffer_bytes` what a slow watch may leave
    unsent, before it is ended.
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

    def __post_init__(self) -> None:
        for name in ("bookmark_period_seconds", "watch_timeout_seconds", "watch_buffer_bytes", "history_events"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be greater than 0, not {getattr(self, name)}")
