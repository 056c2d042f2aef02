"""A worker process: `python -m typha.worker LISTENER LINK`, started by the hub.

The arguments are inherited descriptors. A `WorkerConfig` arrives as JSON on standard input.
"""

import asyncio
import gc
import socket
import sys

import msgspec
import structlog
import uvloop

from typha import settings, signals
from typha.ipc import link, messages
from typha.observability import logs
from typha.worker import server, tls

EXIT_HUB_GONE = 3
EXIT_DEFECT = 1
EXIT_TLS_UNUSABLE = 4


async def _serve(config: messages.WorkerConfig, listener: socket.socket, link_end: socket.socket) -> int:
    log = structlog.get_logger("typha.worker")
    loop = asyncio.get_running_loop()
    logs.limit_loop_errors(loop)
    try:
        await server.serve(config, listener, link_end)
    except link.LinkBroken as error:
        log.error("The link to the hub is broken", error=str(error))
        return EXIT_HUB_GONE
    except tls.TlsUnusable as error:  # the hub starts another worker, later each time
        log.error("Worker cannot use the TLS files", error=str(error))
        return EXIT_TLS_UNUSABLE
    except Exception:
        log.exception("Worker failed")
        return EXIT_DEFECT
    return 0


def main(arguments: list[str]) -> int:
    """Runs a worker to its end; returns the exit code."""
    signals.leave_to_hub()
    listener = socket.socket(fileno=int(arguments[0]))
    link_end = socket.socket(fileno=int(arguments[1]))
    written = sys.stdin.buffer.read()
    if not written:  # the hub has given this start up, for lack of something, or is gone
        return EXIT_HUB_GONE
    config = msgspec.json.decode(written, type=messages.WorkerConfig)
    for descriptor_owner in (listener, link_end):
        descriptor_owner.setblocking(False)
    pipeline = logs.configure_worker(settings.from_dict(config.settings))
    # Clients are flat objects that die by reference count; only rare cycles are left to the collector.
    gc.set_threshold(50_000, 20, 100)
    gc.freeze()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(config, listener, link_end))
    finally:
        pipeline.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
