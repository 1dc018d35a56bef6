"""A real browser without a window, spoken to over its own pipe (Chrome DevTools Protocol).

https://chromedevtools.github.io/devtools-protocol/ has the methods and events. It runs from a root
of its own, in the network namespace of who starts it; knows nothing of what it shows.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from driver.linux.waiting import wait_readable
from tests.engine.rootfs import BROWSER, ensure_root
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ANSWER_SECONDS = 20.0
FILES = "file:///home/"  # where a page finds the folder that is lent to it

# Descriptors 3 and 4 are where it reads and writes; what it says otherwise is of dbus, which is not
# there. Its sandbox would be a second one: who looks at these pages is this machine.
START = """
cd "$1"
mount --rbind /dev dev
mount -t proc proc proc
mount -t tmpfs tmpfs tmp
mount --bind "$2" home
echo "$3" >tmp/fonts.conf
exec env -i HOME=/tmp FONTCONFIG_FILE=/tmp/fonts.conf LANG=C.UTF-8 "$(command -v chroot)" . \
    /usr/lib/chromium/chromium --headless=new --no-sandbox --disable-gpu \
    --disable-dev-shm-usage --no-first-run --disable-component-update \
    --disable-background-networking \
    --remote-debugging-pipe about:blank 3<&0 4>&1 >/dev/null 2>&1
"""


PLACE = """(selector) => {
    const found = document.querySelector(selector);
    found.scrollIntoView({block: 'center', inline: 'center'});
    const place = found.getBoundingClientRect();
    return [place.x + place.width / 2, place.y + Math.min(place.height / 2, 20)];
}"""

# What a page calls the system's font is this one, as on a desktop, and not the plainest.
FONTS = """
<fontconfig>
  <dir>/usr/share/fonts</dir>
  <cachedir>/tmp/fonts</cachedir>
  <alias binding="same"><family>sans</family><prefer><family>Inter</family></prefer></alias>
  <alias binding="same"><family>sans-serif</family><prefer><family>Inter</family></prefer></alias>
  <alias binding="same"><family>system-ui</family><prefer><family>Inter</family></prefer></alias>
  <alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
</fontconfig>
"""


def start_words(folder: Path) -> list[str]:
    """Return the words that run it where mounts are nobody else's, with a folder for its files."""
    return ["sh", "-eu", "-c", START, "sh", str(ensure_root(BROWSER.name)), str(folder), FONTS]


@contextmanager
def apart(folder: Path) -> Iterator[Page]:
    """Lend a page of a browser in namespaces of its own, with no network and no other process."""
    spaces = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    words = ["unshare", *spaces, "--", *start_words(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        try:
            yield Page(running)
        finally:
            running.kill()


class Page:
    """A page of a browser that runs, with its pipe as standard input and output."""

    def __init__(self, browser: subprocess.Popen[Any]) -> None:
        assert browser.stdin is not None
        assert browser.stdout is not None
        self._to, self._from = browser.stdin.fileno(), browser.stdout.fileno()
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.requested: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **words: Any) -> dict[str, Any]:
        """Call a method of the protocol; return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": words}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        """Return the next message, having noted what it tells."""
        end = time.monotonic() + ANSWER_SECONDS
        while b"\0" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not wait_readable([self._from], left):
                raise TimeoutError(f"the browser does not answer; it asked for {self.requested}")
            chunk = os.read(self._from, 1 << 20)
            if not chunk:
                raise EOFError("the browser has ended")
            self._buffer += chunk
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        words = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requested.append(words["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(str(words["exceptionDetails"]))
            case "Page.javascriptDialogOpening":
                self.errors.append(f"a dialog: {words['message']}")
            case "Log.entryAdded":
                self.errors.append(str(words["entry"]))
        return message

    def run(self, script: str) -> Any:
        """Return what an expression of JavaScript is, or what it promises."""
        answer = self.call(
            "Runtime.evaluate",
            expression=script,
            returnByValue=True,
            awaitPromise=True,
            userGesture=True,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def open(self, url: str, *, until: str) -> None:
        """Go somewhere, and wait until an expression holds there."""
        answer = self.call("Page.navigate", url=url)
        assert "errorText" not in answer, answer
        self.wait(until)

    def wait(self, script: str, seconds: float = 10) -> None:
        """Wait until an expression of JavaScript holds."""
        wait_until(lambda: self._holds(script), seconds, script)

    def _holds(self, script: str) -> bool:
        try:
            return bool(self.run(f"Boolean({script})"))  # an element has no value
        except RuntimeError:  # the page is not there yet
            return False

    def click(self, selector: str) -> None:
        """Click in the middle of what a selector finds."""
        x, y = self.run(f"({PLACE})({json.dumps(selector)})")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Type a text where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press a key that has a name, such as Escape."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        """Give the page a size in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    def prefer(self, scheme: str) -> None:
        """Have the reader prefer `light` or `dark`, and nothing that moves."""
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)

    def picture(self) -> bytes:
        """Return what is seen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
