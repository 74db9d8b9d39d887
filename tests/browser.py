"""A page as headless Chromium shows it, over the browser's debugging pipe.

python tests/browser.py report.html docs/images/report   # screenshots: -light.png, -dark.png, -phone.png
"""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SILENT = (
    "--headless --hide-scrollbars --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-extensions"
)


class Browser:
    """One headless Chromium with one page; what the page asked for and complained about is kept."""

    def __init__(self, timeout: float = 60) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._timeout, self._count, self._buffer = timeout, 0, b""
        self._session: dict[str, str] = {}
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)

    def __enter__(self) -> "Browser":
        read_here, write_there = os.pipe()
        read_there, self._write = os.pipe()
        self._read = read_here
        shell = f'exec "$0" "$@" 3<&{read_there} 4>&{write_there}'  # the pipe is on file descriptors 3 and 4
        options = [*SILENT.split(), "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", shell, str(CHROMIUM), *options],
            pass_fds=(read_there, write_there),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": self._profile.name},
        )
        os.close(read_there)
        os.close(write_there)
        (page,) = [t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self.ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)
        self._profile.cleanup()

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and wait for its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path) -> None:
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression: str) -> Any:
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def press(self, key: str) -> None:
        """A key, down and up: Tab or Enter."""
        code = {"Tab": 9, "Enter": 13}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        what = {"key": key, "code": key, "windowsVirtualKeyCode": code, "nativeVirtualKeyCode": code}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **what, **text)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **what)

    def screenshot(self, path: Path, width: int = 1000, height: int = 0, scheme: str = "light") -> None:
        """The page `width` pixels wide; its whole height unless one is given."""
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        view = {"width": width, "height": height or 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.ask("Emulation.setDeviceMetricsOverride", **view)
        view["height"] = height or int(self.evaluate("document.documentElement.scrollHeight"))
        self.ask("Emulation.setDeviceMetricsOverride", **view)
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], self._timeout)
            assert ready, f"Chromium said nothing for {self._timeout} s"
            received = os.read(self._read, 1 << 16)
            assert received, "Chromium ended"
            self._buffer += received
        message, _, self._buffer = self._buffer.partition(b"\0")
        event = json.loads(message)
        self._note(event.get("method"), event.get("params", {}))
        return event

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(params))


def main(page: Path, stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    with Browser() as browser:
        browser.open(page)
        browser.screenshot(stem.with_name(f"{stem.name}-light.png"), height=1780)
        browser.screenshot(stem.with_name(f"{stem.name}-dark.png"), height=1780, scheme="dark")
        browser.screenshot(stem.with_name(f"{stem.name}-phone.png"), width=390, height=1500)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
