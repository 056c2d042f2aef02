"""A simulated process: an event loop on the world's clock, which works, waits, hangs and dies.

The loop keeps exactly the promises of asyncio: callbacks run in order, timers by time. The order of descriptors that
are ready at the same time is random. Work takes time: during a turn, the clock of the process runs ahead of the world's
clock, and the process runs again only when the world has caught up.
"""

import asyncio
import contextvars
import heapq
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, cast

from tests.simulation import world as worlds

_TEARDOWN_TURNS = 200
_TURN_SECONDS = 2e-5
"""Minimum duration of a turn. Without it, a turn without effect would repeat forever at the same time."""


class File(Protocol):
    """The object of a descriptor in an event loop."""

    def is_readable(self) -> bool:
        """Whether to call the reader."""
        ...

    def is_writable(self) -> bool:
        """Whether to call the writer."""
        ...


class Loop:
    """The methods of an event loop that the service uses."""

    def __init__(self, owner: "Process") -> None:
        self._owner = owner
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, float, int, asyncio.TimerHandle]] = []
        self._count = 0
        self._readers: dict[int, asyncio.Handle] = {}
        self._writers: dict[int, asyncio.Handle] = {}
        self.tasks: list[asyncio.Task[Any]] = []
        self.failures: list[str] = []

    @property
    def as_loop(self) -> asyncio.AbstractEventLoop:
        """The loop typed for asyncio, which calls only the methods of this class."""
        return cast("asyncio.AbstractEventLoop", self)

    def time(self) -> float:
        """The time of the process."""
        return self._owner.world.time

    def get_debug(self) -> bool:
        """Always False."""
        return False

    def is_running(self) -> bool:
        """Always True."""
        return True

    def is_closed(self) -> bool:
        """Always False: the loop of a dead process just does not run any more."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Record an unhandled exception."""
        self.failures.append(f"{context.get('message')}: {context.get('exception')!r}")

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Call back in the next turn, in order."""
        handle = asyncio.Handle(callback, args, self.as_loop, context)
        self._ready.append(handle)
        self._owner.wake()
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Call back after a delay."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Call back at a time. The order of timers with the same time is random."""
        handle = asyncio.TimerHandle(when, callback, args, self.as_loop, context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._owner.world.random.random(), self._count, handle))
        self._owner.wake_at(when)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Ignored: the loop skips cancelled timers."""

    def create_future(self) -> asyncio.Future[Any]:
        """Create a future of this loop."""
        return asyncio.Future(loop=self.as_loop)

    def create_task(
        self,
        coro: Any,
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        """Create a task of this loop. `Process` cancels it when the process ends."""
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self.as_loop, name=name, context=context)
        self.tasks.append(task)
        return task

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        """Names are addresses here."""
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port))]

    def run_in_executor(self, _: object, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Call the function in the next turn, in place of a thread."""
        done = self.create_future()

        def call() -> None:
            if done.cancelled():
                return
            try:
                done.set_result(function(*args))
            except Exception as error:
                done.set_exception(error)

        self.call_soon(call)
        return done

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        """Call back while the descriptor is readable."""
        self._readers[fd] = asyncio.Handle(callback, args, self.as_loop, None)
        self._owner.wake()

    def remove_reader(self, fd: Any) -> bool:
        """Stop calling back."""
        return self._readers.pop(fd, None) is not None

    def add_writer(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        """Call back while the descriptor is writable."""
        self._writers[fd] = asyncio.Handle(callback, args, self.as_loop, None)
        self._owner.wake()

    def remove_writer(self, fd: Any) -> bool:
        """Stop calling back."""
        return self._writers.pop(fd, None) is not None

    def events(self) -> list[asyncio.Handle]:
        """The callbacks of the descriptors that are ready, in the order of registration."""
        files = self._owner.files
        readable = [handle for fd, handle in self._readers.items() if files[fd].is_readable()]
        return readable + [handle for fd, handle in self._writers.items() if files[fd].is_writable()]

    def has_events(self) -> bool:
        """Whether a descriptor is ready."""
        files = self._owner.files
        return any(files[fd].is_readable() for fd in self._readers) or any(
            files[fd].is_writable() for fd in self._writers
        )

    def run_once(self) -> None:
        """Run one turn: collect the descriptors and timers that are due, then run everything that is ready."""
        events = self.events()
        if len(events) > 1:
            self._owner.world.random.shuffle(events)
        self._ready.extend(events)
        now = self._owner.local
        while self._timers and self._timers[0][0] <= now:
            self._ready.append(heapq.heappop(self._timers)[3])
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()

    def forget_events(self) -> None:
        """Let only tasks run from now on: the process has ended, and neither time nor a descriptor wakes it."""
        self._timers.clear()
        self._readers.clear()
        self._writers.clear()

    def next_due(self) -> float | None:
        """Time of the next turn with work, or None."""
        if self._ready:
            return 0.0
        while self._timers and self._timers[0][3].cancelled():
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None


class Process:
    """A process. `kill` is SIGKILL: its code stops, and the kernel closes its descriptors."""

    def __init__(self, world: worlds.World, name: str, *, read_clock_seconds: float, wake_seconds_max: float) -> None:
        self.world = world
        self.name = name
        self.loop = Loop(self)
        self.files: dict[int, File] = {}
        self.local = world.now
        self.is_alive = True
        self.exit_code: int | None = None
        self.on_exit: list[Callable[[], None]] = []
        """Actions of the kernel when the process ends."""
        self.disturbed_until = world.now
        """Until then, a hang or the start excuses the process."""
        self.wall_clock_ahead_seconds = 0.0
        """What the wall clock of the process shows more than others do."""
        self._next_fd = 100_000
        self._wake_at: float | None = None
        self._read_clock_seconds = read_clock_seconds
        self._wake_seconds_max = wake_seconds_max

    def __repr__(self) -> str:
        return f"<Process {self.name}>"

    def read_clock(self) -> float:
        """Read the clock of the process. Reading takes time."""
        self.local += self._read_clock_seconds
        return self.local

    def work(self, seconds: float) -> None:
        """Spend time on work."""
        self.local += seconds

    def open(self, file: File) -> int:
        """Allocate a descriptor for the event loop."""
        self._next_fd += 1
        self.files[self._next_fd] = file
        return self._next_fd

    def start(self, main: Callable[[], Coroutine[Any, Any, int]]) -> None:
        """Start the process. `main` returns the exit code."""
        self.world.note(self.name, "started")
        self.loop.call_soon(self._begin, main)

    def _begin(self, main: Callable[[], Coroutine[Any, Any, int]]) -> None:
        self.loop.create_task(main(), name=f"{self.name} main").add_done_callback(self._main_done)

    def _main_done(self, task: asyncio.Task[int]) -> None:
        if not self.is_alive:
            return
        if task.cancelled() or task.exception() is not None:
            self.loop.failures.append(f"{self.name} failed: {task!r}")
            self._end(1)
        else:
            self._end(task.result())

    def wake(self) -> None:
        """Wake the process after a random delay: there may be work."""
        if self.world.current is not self:
            self.wake_at(self.world.time + self.world.random.random() * self._wake_seconds_max)

    def wake_at(self, when: float) -> None:
        """Wake the process at a time."""
        if self.world.current is self:
            return  # checked at the end of the current turn
        when = max(when, self.local, self.world.now)
        if self._wake_at is None or when < self._wake_at:
            self._wake_at = when
            self.world.at(when, lambda: self._wake(when))

    def _wake(self, when: float) -> None:
        if self._wake_at != when or not self.is_alive:
            return
        self._wake_at = None
        if self.world.now < self.local:  # the process has been hung meanwhile
            self.wake_at(self.local)
            return
        self._turn()
        if self.is_alive:
            due = 0.0 if self.loop.has_events() else self.loop.next_due()
            if due is not None:
                self.wake_at(due)

    def _turn(self) -> None:
        self.local = self.world.now + _TURN_SECONDS
        self.world.current = self
        asyncio.events._set_running_loop(self.loop.as_loop)
        try:
            self.loop.run_once()
        finally:
            asyncio.events._set_running_loop(None)
            self.world.current = None
        if self.loop.failures:
            raise worlds.Violation(f"{self.name}: {self.loop.failures[0]}")
        self.world.after_turn(self)

    def hang(self, seconds: float) -> None:
        """Do nothing for a while, as after SIGSTOP or without a CPU."""
        if self.is_alive:
            self.world.note(self.name, f"hangs for {seconds:.3f} s")
            self.local = max(self.local, self.world.now) + seconds
            self.disturbed_until = max(self.disturbed_until, self.local)

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        if self.is_alive:
            self.world.note(self.name, "is killed")
            self._end(-9)

    def _end(self, code: int) -> None:
        self.is_alive = False
        self.exit_code = code
        self.world.note(self.name, f"ended with {code}")
        for action in self.on_exit:
            action()
        # Not now: this may be a turn of the process itself.
        self.world.at(self.world.now, self._take_down)

    def _take_down(self) -> None:
        """Cancel all tasks without any effect on the world, to free memory and descriptors."""
        asyncio.events._set_running_loop(self.loop.as_loop)
        self.local = self.world.now
        self.world.current = self
        try:
            for _ in range(_TEARDOWN_TURNS):
                self.loop.forget_events()
                unfinished = [task for task in self.loop.tasks if not task.done()]
                if not unfinished:
                    break
                for task in unfinished:
                    task.cancel()
                self.loop.run_once()
                self.loop.failures.clear()  # errors of cancelled code do not matter
        finally:
            asyncio.events._set_running_loop(None)
            self.world.current = None
        for task in self.loop.tasks:
            if task.done() and not task.cancelled():
                task.exception()  # otherwise asyncio warns that it was never retrieved
