"""A headless Chromium for tests, driven through WebDriver, the W3C's protocol.

Selenium would do the same, with a dozen packages and a download manager that every test run has to
install; what is needed here are a handful of POST requests to chromedriver.
"""

import base64
import json
import re
import shutil
import subprocess
import tempfile
import urllib.request
from contextlib import contextmanager

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have little of it
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Proxies are for the network; the driver is on this machine.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def missing():
    """Return why no browser can be started, or None."""
    wanted = {"chromium": chromium(), "chromedriver": shutil.which("chromedriver")}
    lacking = [name for name, path in wanted.items() if path is None]
    return f"{' and '.join(lacking)} not found" if lacking else None


def chromium():
    names = "chromium", "chromium-browser", "google-chrome"
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """One window."""

    def __init__(self, url):
        self._url = url
        answer = self._post("", {"capabilities": {"alwaysMatch": self._wishes()}})
        self._url = f"{url}/{answer['sessionId']}"

    def _wishes(self):
        return {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": chromium(), "args": list(ARGUMENTS)},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }

    def _post(self, command, content):
        request = urllib.request.Request(
            self._url + command, json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        with OPENER.open(request, timeout=600) as answer:
            return json.load(answer)["value"]

    def open(self, path):
        """Open a file and forget what was logged before."""
        self.console(), self.requests()
        self._post("/url", {"url": path.as_uri()})

    def run(self, script, *arguments):
        """Run JavaScript and return what it returns."""
        return self._post("/execute/sync", {"script": script, "args": list(arguments)})

    def chrome(self, command, **parameters):
        """Send a command of Chrome's own protocol."""
        return self._post("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def resize(self, width, height=800):
        """Make the window that wide, as a phone does, without scroll bars that take room."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.chrome("Emulation.setDeviceMetricsOverride", **size)

    def prefer(self, scheme):
        """Choose between light and dark."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.chrome("Emulation.setEmulatedMedia", features=[feature])

    def console(self):
        """Return the messages since the last call, those of the content policy too."""
        return [entry["message"] for entry in self._post("/se/log", {"type": "browser"})]

    def requests(self):
        """Return the addresses that were asked for since the last call."""
        logged = self._post("/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in logged]
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [event["request"]["url"] for event in sent]

    def picture(self):
        """Return the whole page as PNG."""
        found = self.chrome("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    def close(self):
        request = urllib.request.Request(self._url, method="DELETE")
        OPENER.open(request, timeout=600).close()


@contextmanager
def browser():
    """Start chromedriver and Chromium, and end both."""
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=log, text=True
        ) as driver,
    ):
        try:
            said = ""
            while not (port := re.search(r"on port (\d+)\.", said)):
                line = driver.stdout.readline()
                if not line:
                    raise RuntimeError(f"chromedriver ended: {said}")
                said += line
            window = Browser(f"http://127.0.0.1:{port[1]}/session")
            try:
                yield window
            finally:
                window.close()
        finally:
            driver.terminate()
