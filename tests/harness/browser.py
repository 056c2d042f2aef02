"""A real browser without a window, driven by the Chrome DevTools Protocol over its WebSocket. No driver is needed."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

_START_SECONDS = 180.0
_ANSWER_SECONDS = 180.0
_COMMAND = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # tests run as root in CI, and the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--remote-debugging-port=0",
)

needs_browser = pytest.mark.skipif(_COMMAND is None, reason="needs chromium (tools/debian-packages.txt)")


class ScriptFailed(Exception):
    """A script in the page raised an exception."""


class Page:
    """One tab. `console`, `requests` and `failures` fill as events arrive."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.console: list[str] = []
        """Warnings and errors: of scripts, of the Content-Security-Policy, of loading."""
        self.requests: list[str] = []
        """URLs of all requests."""

    async def read(self) -> None:
        """Take what the browser says, until it ends."""
        async for message in self._socket:
            said = json.loads(message.data)
            waiting = self._waiting.pop(said.get("id", 0), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(said)
            elif "method" in said:
                self._note(said["method"], said["params"])

    def _note(self, method: str, params: dict[str, Any]) -> None:
        match method:
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.console.append(details.get("exception", {}).get("description") or details["text"])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.console.append(str([argument.get("value") for argument in params["args"]]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.console.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        said = await asyncio.wait_for(answer, _ANSWER_SECONDS)
        if "error" in said:
            raise ScriptFailed(f"{method}: {said['error']}")
        return dict(said["result"])

    async def open(self, url: str) -> None:
        """Go to an address. Returns at once: what the page shows is to be waited for."""
        await self.call("Page.navigate", url=url)

    async def value(self, expression: str) -> Any:
        """The value of an expression in the page, awaited if it is a promise."""
        result = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in result:
            raise ScriptFailed(str(result["exceptionDetails"]))
        return result["result"].get("value")

    async def shows(self, condition: str) -> None:
        """Wait until the expression is true. While the page is being loaded, it may fail."""
        expression = f"(() => {{ try {{ return Boolean({condition}) }} catch {{ return false }} }})()"
        deadline = asyncio.get_running_loop().time() + _ANSWER_SECONDS
        while not await self._is_true(expression):
            if asyncio.get_running_loop().time() > deadline:
                seen = await self.value("document.body.innerText.slice(0, 2000)")
                raise AssertionError(f"the page never shows {condition}: {self.console}\n{seen}")
            await asyncio.sleep(0.05)

    async def _is_true(self, expression: str) -> bool:
        try:
            return bool(await self.value(expression))
        except ScriptFailed as error:
            if "context" not in str(error) and "navigated" not in str(error):
                raise
            return False  # the page has just been replaced by another one

    async def press(self, *keys: str) -> None:
        """Press keys, given by their names, such as Tab, Enter, ArrowRight, or a character."""
        for key in keys:
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            code = {"Enter": 13, "Tab": 9, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
            number = code.get(key, ord(key.upper()) if len(key) == 1 else {"Home": 36, "End": 35}.get(key, 0))
            shared = {"key": key, "code": key, "windowsVirtualKeyCode": number}
            await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **shared)
            await self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    async def prefer(self, **features: str) -> None:
        """Set media features, such as color_scheme."""
        names = {f"prefers-{name.replace('_', '-')}": value for name, value in features.items()}
        await self.call(
            "Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in names.items()]
        )

    async def resize(self, width: int, height: int, *, scale: float = 1.0) -> None:
        """Set the size of the window in CSS pixels."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    async def picture(self, *, whole: bool = False) -> bytes:
        """What the page looks like, as PNG."""
        result = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(result["data"])


@contextlib.asynccontextmanager
async def page(folder: pathlib.Path) -> AsyncIterator[Page]:
    """A browser with one empty page; `folder` is for its profile. The browser ends with the block."""
    assert _COMMAND is not None
    profile = folder / "browser"
    log = folder / "browser.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            _COMMAND,
            *_OPTIONS,
            f"--user-data-dir={profile}",
            "about:blank",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)},
            start_new_session=True,
        )
    try:
        async with aiohttp.ClientSession() as session:
            target = await _target(session, log, process)
            async with session.ws_connect(target, max_msg_size=0) as socket:
                made = Page(socket)
                reading = asyncio.create_task(made.read(), name="browser")
                for domain in ("Page", "Runtime", "Network", "Log"):
                    await made.call(f"{domain}.enable")
                yield made
                with contextlib.suppress(ScriptFailed, TimeoutError, ConnectionError):
                    await made.call("Browser.close")
                reading.cancel()
                await asyncio.wait([reading])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        await process.wait()


async def _target(session: aiohttp.ClientSession, log: pathlib.Path, process: asyncio.subprocess.Process) -> str:
    """The WebSocket of the browser's first page."""
    deadline = asyncio.get_running_loop().time() + _START_SECONDS
    while True:
        found = re.search(r"DevTools listening on ws://([\w.:]+)/", log.read_text(errors="replace"))
        if found:
            async with session.get(f"http://{found[1]}/json/list") as response:
                pages = [one for one in await response.json() if one["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
        assert process.returncode is None, f"the browser has ended:\n{log.read_text(errors='replace')}"
        assert asyncio.get_running_loop().time() < deadline, f"no browser:\n{log.read_text(errors='replace')}"
        await asyncio.sleep(0.1)
