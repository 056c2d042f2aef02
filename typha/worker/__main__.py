"""A worker process: `python -m typha.worker LISTENER LINK`, started by the hub.

The arguments are inherited descriptors; a `WorkerConfig` as JSON comes on standard input.
"""

import asyncio
import gc
import signal
import socket
import sys

import msgspec
import structlog
import uvloop

from typha import settings
from typha.ipc.link import Link, LinkBroken
from typha.observability import logs
from typha.worker import policy, server

EXIT_HUB_GONE = 3
EXIT_DEFECT = 1


async def _serve(config: policy.WorkerConfig, listener: socket.socket, link_socket: socket.socket) -> int:
    log = structlog.get_logger("typha.worker")
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        # The hub decides when to end, and says how; a signal to the whole process group is for it.
        loop.add_signal_handler(signal_number, lambda: None)
    link = Link(link_socket)
    try:
        await server.Server(config, listener, link).run()
    except LinkBroken as error:
        log.error("The hub is gone", error=str(error))
        return EXIT_HUB_GONE
    except Exception:
        log.exception("Worker failed")
        return EXIT_DEFECT
    return 0


def main(arguments: list[str]) -> int:
    """Runs a worker to its end; returns the exit code."""
    listener = socket.socket(fileno=int(arguments[0]))
    link_socket = socket.socket(fileno=int(arguments[1]))
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=policy.WorkerConfig)
    for descriptor_owner in (listener, link_socket):
        descriptor_owner.setblocking(False)
    configured = settings.from_dict(config.settings)
    pipeline = logs.configure_worker(configured)
    # Clients are flat objects that die by reference count; only rare cycles are left for the collector.
    gc.set_threshold(50_000, 20, 100)
    gc.freeze()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(config, listener, link_socket))
    finally:
        pipeline.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
