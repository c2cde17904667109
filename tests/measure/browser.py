"""Headless Chromium over chromedriver's own protocol (W3C WebDriver): no package is needed."""

import contextlib
import json
import re
import subprocess
import time
import urllib.request

# All text of a page, also below the shadow roots that TensorBoard's older tabs are made of.
TEXT = """
const told = [];
(function walk(node) {
  if (node.nodeType === 3) told.push(node.textContent);
  if (["SCRIPT", "STYLE", "TEMPLATE"].includes(node.nodeName)) return;
  if (node.shadowRoot) walk(node.shadowRoot);
  node.childNodes.forEach(walk);
})(document.body);
return told.map(t => t.trim()).filter(t => t).join("\\n");
"""


class Page:
    """One tab."""

    def __init__(self, session: str):
        self._session = session

    def open(self, url: str) -> None:
        _call(f"{self._session}/url", {"url": url})

    def text(self) -> str:
        return _call(f"{self._session}/execute/sync", {"script": TEXT, "args": []})

    def wait_for(self, *words: str, seconds: float = 60) -> str:
        """The page's text, once it has all words; what there is of it, where they do not come."""
        end = time.monotonic() + seconds
        while not all(word in (text := self.text()) for word in words):
            if time.monotonic() > end:
                return text
            time.sleep(0.5)
        return text

    def screenshot(self) -> str:
        """Base64 of a PNG."""
        with urllib.request.urlopen(f"{self._session}/screenshot", timeout=60) as answer:
            return json.load(answer)["value"]


@contextlib.contextmanager
def chromium(driver: str):
    """A `Page` of a browser that ends with the block."""
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if found := re.search(r"successfully on port (\d+)", line):
                break
        place = f"http://127.0.0.1:{found[1]}/session"
        made = _call(place, {"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--window-size=1500,1100"]}}}})
        session = f"{place}/{made['sessionId']}"
        try:
            yield Page(session)
        finally:
            urllib.request.urlopen(urllib.request.Request(session, method="DELETE"), timeout=60)
    finally:
        process.terminate()
        process.wait(30)


def _call(url: str, body: dict):
    request = urllib.request.Request(url, json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["value"]
