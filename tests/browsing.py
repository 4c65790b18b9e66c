"""Pages in a headless browser: how they are opened, and what must hold of all."""

import json

# CSS pixels of a phone and of a desk.
WIDTHS = (400, 1200)


def show(browser, path, width=1200, scheme="light"):
    for log in ("browser", "performance"):
        browser.get_log(log)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    browser.get(path.resolve().as_uri())
    return browser


def requested(browser):
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


def assert_whole(browser, path):
    """No complaint, no request but for the page itself, and every image is there."""
    assert browser.get_log("browser") == []
    assert [url for url in requested(browser) if not url.startswith("data:")] == [
        path.resolve().as_uri()
    ]
    widths = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert widths and all(widths)
    unnamed = browser.execute_script("return [...document.images].filter(i => !i.alt).length")
    assert unnamed == 0
