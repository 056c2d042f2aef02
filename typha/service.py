"""The service: puts the parts together, runs them, and ends them in order. Only this module knows all of them."""

import asyncio
import contextlib
import errno
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import TypeVar

import structlog

from cache import objects, resources
from cache.feeds import feed, followed
from cache.feeds.calico import syncers
from cache.kube import access, api, discovery, endpoints, watcher
from cache.watch import api_group
from cache.watch.policy import WatchPolicy
from protocol.messages import SyncStatus
from protocol.native import encoder as native_encoder
from typha import build, clock, listening, open_files, settings, signals
from typha.admin import contents, history, local_socket, page, status, support
from typha.admin import server as admin_server
from typha.hub import bootstrap, collector, diagnosis, hub, rebalancing, supervisor, tracing
from typha.hub import policy as hub_policy
from typha.ipc import messages
from typha.observability import health, logs, loop_latency, metrics, spans, webserver
from typha.peers import discovered
from typha.peers import watch as peers_watch
from typha.settings import description, feeds_file
from typha.upstream import lease
from typha.upstream import source as upstream_source

_log = structlog.get_logger("typha.service")

_BACKLOG = 65535
"""Connections that the kernel keeps while a storm is accepted, or while no worker lives: as many as net.core.somaxconn
allows. Clients beyond that try again after a second, by TCP's own clock."""
_RECEIVE_BUFFER_BYTES = 16 * 1024
"""Of each connection, which inherits it. Clients send a hello and pongs; what a peer sends and nobody reads takes 29 kB
of the kernel's memory instead of 130."""
_ACCESS_RETRY_SECONDS = 1.0
_RECURSION_LIMIT = 12_000
_HOUSEKEEPING_SECONDS = 1.0
_LOOK_SECONDS = 0.25
_PORT_WAIT_SECONDS = 3.0
"""The workers of a service that was killed end by themselves within a turn of their loop, and free the port."""
_PORT_RETRY_SECONDS = 0.1
EXIT_CANNOT_SERVE = 1
_PAGE_BACKLOG = 16
_LISTEN_RETRY_SECONDS = 1.0
_ENDPOINTS_SECONDS = 30.0
_PROBE_SECONDS = 3.0
_NODE_KEYS = "/calico/resources/v3/projectcalico.org/nodes/"
"""In the felix feed, one for each node."""
_NODES = resources.ResourceType("", "v1", "nodes")


class ServiceError(Exception):
    """The service cannot run here; the message says why in one line."""


class AddressInUse(ServiceError):
    """Another process listens on the address."""


Listening = TypeVar("Listening")


def forbid_core_dumps() -> None:
    """A core of this process, or of one that it starts, would hold tokens and private keys."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def open_listener(configured: settings.Settings) -> socket.socket:
    """The listening socket; for IPv4 and IPv6 if no host is given.

    Raises:
        ServiceError: the address cannot be used.
    """
    host, port = configured.server_host, max(0, configured.server_port)
    try:
        return listening.open_one(host, port, backlog=_BACKLOG, receive_buffer_bytes=_RECEIVE_BUFFER_BYTES)
    except OSError as error:
        raise _cannot_listen("clients", host, port, error) from error


def _cannot_listen(what: str, host: str, port: int, error: OSError) -> ServiceError:
    failure = AddressInUse if error.errno == errno.EADDRINUSE else ServiceError
    return failure(f"cannot listen on {host or '*'}:{port} for {what}: {error}")


async def _serve_embedded_worker(
    config: messages.WorkerConfig, listener: socket.socket, link_end: socket.socket
) -> None:
    from typha.worker import server  # late: with worker processes the hub needs none of it

    await server.serve(config, listener, link_end)


class Service:
    """One service; `run` returns when it has drained after `stop`.

    `max_latency` is that of the loop that it runs on, if it is measured. `described` are the settings as an operator
    may see them.
    """

    def __init__(
        self,
        configured: settings.Settings,
        listener: socket.socket,
        *,
        max_latency: loop_latency.MaxLatency | None = None,
        described: Sequence[description.Shown] = (),
    ) -> None:
        self._settings = configured
        self._described = described
        self._stopping = asyncio.Event()
        self._has_access = asyncio.Event()
        self._specs = feeds_file.load(configured.feeds_file) if configured.feeds_file else []
        max_value_bytes = self._max_value_bytes = configured.max_frame_bytes - native_encoder.VALUE_OVERHEAD_BYTES
        limits = hub_policy.from_settings(configured)
        self.hub = hub.Hub(
            self._raw_feeds(),
            limits,
            awaited=bootstrap.awaited_names(configured),
        )
        self.calico = bootstrap.CalicoStart(
            configured,
            self.hub,
            max_value_bytes=max_value_bytes,
            use_pod_cidr=settings.uses_pod_cidrs(os.environ),
        )
        self.listener = listener
        self.supervisor = supervisor.Supervisor(
            self.hub, configured, limits, listener, serve_embedded=_serve_embedded_worker
        )
        self.health = health.HealthAggregator()
        self.garbage = loop_latency.GarbageCollection()
        self.collector = collector.Collector(
            configured,
            self.hub,
            self.supervisor,
            max_latency=max_latency or loop_latency.MaxLatency(clock.monotonic()),
            open_files_limit=open_files.raise_limit(),
            version=build.VERSION,
            commit=build.commit(),
        )
        self.rebalancer = rebalancing.Rebalancer(
            configured, self.supervisor, count_replicas=self._count_replicas, count_nodes=self._count_nodes
        )
        self.collector.rebalancer = self.rebalancer
        self.collector.register(self.health)
        if configured.health_enabled:
            self.collector.web_servers.append(webserver.health_server(self.health, configured))
        if configured.prometheus_metrics_enabled:
            self.collector.web_servers.append(self._metrics_server())
        self.peers = peers_watch.Peers(
            configured,
            peers_watch.Actions(
                stale_feeds=lambda: self.hub.stale_feeds,
                hand_over=lambda seconds, servers: self.hub.workers.send(messages.HandOver(seconds, servers)),
                keep=lambda: self.hub.workers.send(messages.KeepClients()),
            ),
            incarnation=bytes.fromhex(self.supervisor.incarnation),
        )
        self.collector.peers = self.peers
        if self.peers.is_enabled:
            self.health.register(health.FRESHNESS, now_seconds=clock.monotonic(), live=False, ready=True)
        self._candidate = self._make_candidate() if configured.upstream == upstream_source.ELECTED else None
        self.source = self._make_source() if configured.upstream else None
        self.collector.source = self.source
        self.diagnosis = diagnosis.Diagnosis(self.hub, self.supervisor, self.collector)
        self.history = history.History(self.supervisor, self.hub.recent)
        self.admin = admin_server.AdminServer("admin", self._admin_pages())
        self.status_page = admin_server.AdminServer(
            "status-page",
            page.pages(self._shown_pages()),
            limits=page.LIMITS,
            headers=page.HEADERS,
            answers_to=page.answers_to(configured.status_page_host),
        )
        self.collector.http_refused[self.admin.name] = self.admin.refused
        if configured.status_page_enabled:
            self.collector.http_refused[self.status_page.name] = self.status_page.refused
        self._sink: objects.WatchSink = self.hub
        self._tracer = self._make_tracer()

    def _raw_feeds(self) -> list[feed.RawFeed]:
        return [feed.RawFeed(spec, max_value_bytes=self._max_value_bytes) for spec in self._specs]

    def _make_source(self) -> upstream_source.Source:
        """What chooses between other replicas and the API server."""
        listed = discovered.listed(self._settings.upstream)
        is_elected = self._settings.upstream == upstream_source.ELECTED
        return upstream_source.Source(
            self._settings,
            self.hub,
            incarnation=bytes.fromhex(self.supervisor.incarnation),
            max_value_bytes=self._max_value_bytes,
            candidates=lambda: self.peers.known if is_elected else listed,
            watch=self._watch_instead,
            api_answers=self._api_answers,
            must_watch=lambda: self._candidate is not None and self._candidate.holds,
        )

    def _make_candidate(self) -> lease.Candidate | None:
        """What takes part in the election. Without other replicas to ask, this one cannot follow, and watches."""
        configured = self._settings
        if not self.peers.is_enabled:
            _log.error(
                "Replicas cannot be elected: no other ones are known",
                setting="ConnectionRebalancingMode, PeerAddresses",
            )
        try:
            return lease.Candidate(
                identity=f"{socket.gethostname()}_{self.supervisor.incarnation}",
                namespace=configured.k8s_namespace,
                service=configured.k8s_service_name,
            )
        except ValueError as error:
            _log.error("Replicas cannot be elected", error=str(error), setting="K8sNamespace, K8sServiceName")
            return None

    def _make_tracer(self) -> tracing.Tracer | None:
        """Begins to trace, if that is configured. What cannot be traced is served all the same."""
        if not self._settings.tracing_sample_ratio:
            return None
        try:
            exporter = spans.open_exporter(build.VERSION)
        except spans.Unavailable as error:
            _log.warning("Updates are not traced", error=str(error), setting="TracingSampleRatio")
            return None
        tracer = tracing.Tracer(
            self._settings.tracing_sample_ratio,
            finished=lambda trace: exporter.export(*tracing.spans_of(trace)),
            dropped=exporter.drop,
        )
        self.hub.tracer, self._sink, self.collector.spans = tracer, tracing.TracedHub(self.hub, tracer), exporter
        return tracer

    def stop(self, signal_name: str = "") -> None:
        """Begins to drain: no new clients are accepted, and the others are closed one after another."""
        if self._stopping.is_set():
            _log.info("Already draining", signal=signal_name)
            return
        _log.info("Draining", signal=signal_name, seconds=self._settings.shutdown_timeout_seconds)
        self.health.drain()
        if self._candidate is not None:
            self._candidate.release()
        self._stopping.set()

    async def run(self) -> None:
        """Serves until drained.

        Raises:
            ExceptionGroup: a defect; the service cannot go on.
        """
        loop = asyncio.get_running_loop()
        logs.limit_loop_errors(loop)
        port = self.listener.getsockname()[1]
        feeds = {"feeds": ", ".join(self.hub.feeds) or "none"}
        if self.hub.awaited:  # whether they come is decided once the API server has answered
            feeds["feeds_not_decided"] = ", ".join(self.hub.awaited)
        _log.info("Listening", port=port, **feeds, workers=self.supervisor.wanted)
        if not self.hub.names:
            _log.warning("No feeds are configured: every client will be refused", setting="FeedsFile, CalicoFeeds")
        try:
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(self.supervisor.run(), name="workers")
                background = [tasks.create_task(action, name=name) for name, action in self._background()]
                await self._stopping.wait()
                begun, seconds = clock.monotonic(), self._settings.shutdown_timeout_seconds
                if self.source is not None and self._candidate is not None:
                    await self.source.leave(seconds / 2)
                self.listener.close()
                self.supervisor.drain(
                    seconds=seconds - (clock.monotonic() - begun),
                    interval_seconds_max=self._settings.shutdown_connection_drop_interval_max_seconds,
                )
                await serving
                for task in background:  # only here: after a failure the group cancels them, and twice is too often
                    task.cancel()
        finally:
            self.listener.close()
            self.hub.close()
            if self.collector.spans is not None:
                await self.collector.spans.close()
        _log.info("Drained")

    def _background(self) -> list[tuple[str, Coroutine[None, None, None]]]:
        jobs: list[tuple[str, Coroutine[None, None, None]]] = [
            ("watchers", self._watch()),
            ("snapshots", self.hub.run_snapshots()),
            ("catch-ups", self.hub.catch_ups.run()),
            ("coalescing", self.hub.run_coalescing()),
            ("conversions", self.hub.run_conversions()),
            ("dictionaries", self.hub.run_dictionaries()),
            ("projections", self.hub.run_projections()),
            ("garbage", self.garbage.run()),
            ("housekeeping", self._keep_house()),
            ("workers' activity", self._watch_workers()),
            ("peers", self.peers.run()),
            ("rebalancing", self.rebalancer.run()),
            ("admin", self._serve_admin()),
            ("status page", self._serve_status_page()),
        ]
        if self._tracer is not None:
            jobs.append(("traces", self._tracer.run()))
        jobs += [(server.name, server.run()) for server in self.collector.web_servers]
        return jobs

    def open_web_ports(self) -> None:
        """Opens the ports of health and metrics, of which another process may have one.

        Other obstacles, such as a name without an address, are tried again while the service runs.

        Raises:
            AddressInUse.
        """
        for server in self.collector.web_servers:
            try:
                server.open()
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    for opened in self.collector.web_servers:
                        opened.close()
                    raise _cannot_listen(server.name, server.host, server.port, error) from error

    def _exposition(self) -> Callable[[], bytes]:
        """Makes the metrics page."""
        collector = metrics.SamplesCollector(self.collector.samples, syncers=self.hub.names)
        registry = metrics.make_registry(
            collector,
            runtime=self._settings.prometheus_go_metrics_enabled,
            process=self._settings.prometheus_process_metrics_enabled,
            workers=lambda: self.supervisor.pids,
        )
        return lambda: metrics.exposition(registry)

    def _metrics_server(self) -> webserver.WebServer:
        return webserver.metrics_server(self._exposition(), metrics.CONTENT_TYPE, self._settings)

    def _admin_pages(self) -> dict[str, admin_server.Page]:
        archive = support.SupportPage(self.hub, self.health, self._exposition(), self._described)
        return {**self._shown_pages(), **contents.ContentPages(self.hub).pages, **archive.pages}

    def _shown_pages(self) -> dict[str, admin_server.Page]:
        """What the status page may show: numbers and names, and no object of the cluster."""
        pages = status.StatusPages(
            self.hub,
            self.supervisor,
            self.collector,
            port=self.listener.getsockname()[1],
            is_draining=self._stopping.is_set,
        )
        return {**pages.pages, **self.history.pages}

    async def _serve_status_page(self) -> None:
        """The page in the browser, if it is wanted. The service goes on without it."""
        host, port = self._settings.status_page_host, self._settings.status_page_port
        is_first = True
        while self._settings.status_page_enabled:
            try:
                addresses = await asyncio.to_thread(listening.addresses, host, port)
                listeners = listening.open_all(host, port, backlog=_PAGE_BACKLOG, found=addresses)
            except (OSError, RuntimeError) as error:  # RuntimeError: no thread is left
                if is_first:
                    _log.warning("The status page cannot listen, retrying", host=host, port=port, error=str(error))
                is_first = False
                await asyncio.sleep(_LISTEN_RETRY_SECONDS)
                continue
            _log.info("Status page is listening", host=host, port=listeners[0].getsockname()[1])
            await self.status_page.run(listeners)

    async def _serve_admin(self) -> None:
        """The socket for operators. The service goes on without it; until it opens, `typha status` cannot ask here."""
        if not self._settings.admin_socket:
            return
        is_first = True
        while True:
            path = self._settings.admin_socket
            try:
                if path == local_socket.AUTOMATIC:
                    path = local_socket.automatic_path(self.listener.getsockname()[1])
                listener = local_socket.Listener(path)
                break
            except (OSError, local_socket.Unusable) as error:
                if is_first:
                    _log.warning("Cannot open the admin socket, retrying", error=str(error))
                is_first = False
                await asyncio.sleep(_LISTEN_RETRY_SECONDS)
        _log.info("Admin socket is listening", path=path)
        try:
            await self.admin.run([listener.socket], peer_of=local_socket.peer_of)
        finally:
            listener.close()

    async def _keep_house(self) -> None:
        synced = False
        while True:
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)
            for one in self.collector.watchers:
                self.hub.set_unconfirmed(one.type, one.is_unconfirmed, one.counters.last_confirmed)
            self.hub.look_after_channels()
            self.history.look()
            self.collector.report(self.health)
            if self.collector.spans is not None:
                self.collector.spans.report()
            is_complete = bool(self.hub.feeds) and not self.hub.awaited
            if not synced and is_complete and all(source.synced_once for source in self.hub.feeds.values()):
                synced = True
                self.garbage.freeze()

    async def _watch_workers(self) -> None:
        while True:
            self.supervisor.look()
            self.collector.report_client_port(self.health)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _count_replicas(self) -> int:
        """The addresses of the Service. Raises rebalancing.Unknown."""
        session = self.collector.session
        if session is None or not session.is_open:
            raise rebalancing.Unknown("no access to an API server yet")
        namespace, name = self._settings.k8s_namespace, self._settings.k8s_service_name
        try:
            listed = await endpoints.of_service(session, namespace, name, answer_seconds=_ENDPOINTS_SECONDS)
        except (api.Interrupted, discovery.Refused, ValueError) as error:
            raise rebalancing.Unknown(f"Service {namespace}/{name}: {error}") from error
        port = self._settings.k8s_port_name
        self.peers.discovered(discovered.addresses(listed, port_name=port))
        return len({address for one in listed if port in one.ports for address in one.addresses})

    def _count_nodes(self) -> int:
        """The cluster's nodes. Raises rebalancing.Unknown."""
        for one in self.collector.watchers:
            if one.type == _NODES and one.status is SyncStatus.IN_SYNC:
                return one.object_count
        felix = self.hub.followed_feeds.get(syncers.FELIX)
        if felix is not None and felix.synced_once:
            return sum(one.key.startswith(_NODE_KEYS) for one in felix.store)
        raise rebalancing.Unknown("the nodes are not known")

    async def _watch(self) -> None:
        """Watches every type that a feed takes, once each; or follows another replica, if that is configured."""
        if self.source is None:
            async with self._session() as session:
                await self.calico.decide(session)
                await self._watch_types(session)
        else:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_session(), name="session with the API server")
                await self._follow(self.source)

    async def _follow(self, chosen: upstream_source.Source) -> None:
        if bootstrap.is_optional(self._settings):
            await self.calico.decide(await self._opened_session())
        awaited = self.hub.awaited
        self.hub.add_feeds(followed.FollowedFeed(name, has_projections=name == syncers.FELIX) for name in awaited)
        self.hub.follow()
        await chosen.run()

    async def _watch_instead(self) -> None:
        """Watches until cancelled. What it finds takes the place of what an upstream has sent."""
        try:
            session = await self._opened_session()
            feeds: list[feed.Feed] = [*self._raw_feeds()]
            if not {one.name for one in feeds} >= self.hub.followed_feeds.keys():
                feeds += await self.calico.make_feeds(session)
            self.hub.unfollow(feeds)
            await self._watch_types(session)
        finally:
            self.collector.watchers.clear()

    async def _keep_session(self) -> None:
        async with self._session() as session:
            if self._candidate is not None:
                await self._candidate.run(session)
            await asyncio.Event().wait()

    async def _opened_session(self) -> api.KubeApi:
        await self._has_access.wait()
        session = self.collector.session
        if session is None:
            raise RuntimeError("access without a session")
        return session

    async def _api_answers(self) -> bool:
        """Whether the API server answers at all."""
        session = self.collector.session
        if session is None or not session.is_open:
            return False
        try:
            async with api.deadline(_PROBE_SECONDS, "no answer"):
                api.close_response(await session.get("/version", {}, read_timeout_seconds=_PROBE_SECONDS))
        except api.Interrupted:
            return False
        return True

    async def _watch_types(self, session: api.KubeApi) -> None:
        async with asyncio.TaskGroup() as tasks:
            late = self.calico.types
            self._start_watchers(session, tasks, [type for type in self.hub.types if type not in late])
            if late:
                await self.calico.installed(session)
                self._start_watchers(session, tasks, late)
            while True:  # a type that only agents of older releases get is watched once there is one
                older = await self.hub.older_types.get()
                await self.calico.older_wanted(session, older)
                self._start_watchers(session, tasks, [older], are_optional=True)

    def _start_watchers(
        self,
        session: api.KubeApi,
        tasks: asyncio.TaskGroup,
        types: Iterable[resources.ResourceType],
        *,
        are_optional: bool = False,
    ) -> None:
        policy = WatchPolicy(page_limit=self._settings.list_page_size, is_optional=are_optional)
        group = api_group.ApiGroup(self.calico.types)
        for type in types:
            one = watcher.Watcher(session, type, self._sink, policy=policy, group=group if type in group else None)
            self.collector.watchers.append(one)
            tasks.create_task(one.run(), name=f"watch {type}")

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[api.KubeApi]:
        """A session with the API server, with credentials loaded, however long that takes."""
        session = self.collector.session = api.KubeApi()
        complained = False
        while True:
            try:
                await session.start()
                break
            except access.AccessError as error:
                if not complained:
                    _log.error("No access to an API server, trying again each second", error=str(error))
                complained = True
                await asyncio.sleep(_ACCESS_RETRY_SECONDS)
        self._has_access.set()
        try:
            yield session
        finally:
            await session.close()


def allow_deep_json() -> None:
    """Lets objects nest as deep as the API server allows, 10,000 levels: one such object must not stop a whole list.

    Deeper objects are refused as malformed, because the decoder counts its own calls against this limit.
    """
    sys.setrecursionlimit(max(sys.getrecursionlimit(), _RECURSION_LIMIT))


async def serve(
    configured: settings.Settings,
    max_latency: loop_latency.MaxLatency,
    described: Sequence[description.Shown] = (),
) -> int:
    """Runs the service to its end on a loop whose turns `max_latency` measures; returns the exit code.

    From here to the end of the process, no signal has its default effect.
    """
    allow_deep_json()
    forbid_core_dumps()
    try:
        with await _when_free(lambda: open_listener(configured)) as listener:
            made = Service(configured, listener, max_latency=max_latency, described=described)
            with signals.handled(asyncio.get_running_loop(), _signal_actions(made)):
                await _when_free(made.open_web_ports)
                await made.run()
    except ServiceError as error:
        _log.critical("Cannot serve", error=str(error))
        return EXIT_CANNOT_SERVE
    return 0


def _signal_actions(made: Service) -> dict[signal.Signals, Callable[[], None]]:
    """What signals to the hub do. It passes them on to the workers, which ignore their own: a signal to the whole
    process group must not be acted on twice."""

    def reopen_log() -> None:
        logs.reopen_file()
        made.supervisor.control_log(messages.ControlLog(reopen=True))

    def diagnose() -> None:
        if made.diagnosis.write():
            made.supervisor.control_log(messages.ControlLog(diagnose=True))

    def switch_debug() -> None:
        logs.switch_debug(not logs.is_debugging())
        made.supervisor.control_log(messages.ControlLog(debug=logs.is_debugging()))

    return {
        signal.SIGTERM: lambda: made.stop("SIGTERM"),
        signal.SIGINT: lambda: made.stop("SIGINT"),
        signal.SIGHUP: reopen_log,
        signal.SIGUSR1: diagnose,
        signal.SIGUSR2: switch_debug,
    }


async def _when_free(listen: Callable[[], Listening]) -> Listening:
    """Listens; after a moment, if what is left of a service that was killed still holds an address."""
    deadline = asyncio.get_running_loop().time() + _PORT_WAIT_SECONDS
    while True:
        try:
            return listen()
        except AddressInUse:
            if asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(_PORT_RETRY_SECONDS)
