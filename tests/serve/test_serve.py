"""The page that serves models: its API, and as a browser shows it."""

import http.client
import io
import json
import struct
import threading
import zlib
from urllib.parse import quote

import numpy as np
import pytest
from browsing import WIDTHS
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import vmoe_prc
from vmoe_prc.serve.__main__ import main
from vmoe_prc.serve.changes import Changes, matches
from vmoe_prc.serve.gallery import Gallery
from vmoe_prc.serve.server import create_server

MAX_BYTES, MAX_IMAGES = 200_000, 3
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def models(finished):
    first = vmoe_prc.open(finished[0])
    second = vmoe_prc.open(finished[0], classes=[f"{i} {HOSTILE}" for i in range(10)])
    second.name = HOSTILE
    return first, second


@pytest.fixture
def server(models):
    server = create_server(Gallery(models, MAX_IMAGES), "127.0.0.1", 0, MAX_BYTES)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def ask(server, path, body=None, method=None, headers=()):
    connection = http.client.HTTPConnection(*server.server_address, timeout=60)
    connection.request(method or ("POST" if body is not None else "GET"), path, body, dict(headers))
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def ask_json(server, *args, **kwargs):
    status, text = ask(server, *args, **kwargs)
    return status, json.loads(text)


def picture(seed=0, size=(40, 52), form="PNG"):
    file = io.BytesIO()
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(file, form)
    return file.getvalue()


def look(server, image, **changes):
    body = json.dumps({"image": image, "changes": changes})
    return ask_json(server, "/api/look", body)


def test_a_picture_is_classified_and_routed_as_in_python(server, models):
    status, answer = ask_json(server, "/api/images", picture())
    assert status == 200
    status, answers = look(server, answer["image"])
    assert status == 200
    for model, found in zip(models, answers, strict=True):
        prediction = model.predict([picture()])[0]
        assert [name for name, _ in found["classes"]] == list(prediction.classes)
        np.testing.assert_allclose(
            [p for _, p in found["classes"]], prediction.probabilities, atol=1e-3
        )
        routing = model.routing([picture()])["encoderblock_1"]
        block = found["blocks"]["encoderblock_1"]
        assert block["experts"] == routing.experts[0, 1:].tolist()
        assert block["changed"] == []
        assert found["matches"] == list(range(len(block["experts"])))


def test_a_photo_of_a_phone_is_taken_as_it_is(server, models):
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(Image.open(io.BytesIO(picture()))).save(file, quality=90)
    status, answer = ask_json(server, "/api/images", file.getvalue())
    assert status == 200, answer
    found = look(server, answer["image"])[1][0]["classes"]
    (prediction,) = models[0].predict([file.getvalue()])
    assert [name for name, _ in found] == list(prediction.classes)


def test_changes_move_patches_and_their_matches(server):
    _, answer = ask_json(server, "/api/images", picture())
    _, answers = look(server, answer["image"], noise=0.4, right=0.5)
    found = answers[0]
    side = 4
    shifted = [[row * side + col + 2 for col in (0, 1)] + [-1, -1] for row in range(side)]
    assert found["matches"] == np.ravel(shifted).tolist()
    _, same = look(server, answer["image"])
    before = [first for first, *_ in same[0]["blocks"]["encoderblock_1"]["experts"]]
    after = [first for first, *_ in found["blocks"]["encoderblock_1"]["experts"]]
    changed = [m for p, m in enumerate(found["matches"]) if m >= 0 and before[p] != after[m]]
    assert found["blocks"]["encoderblock_1"]["changed"] == sorted(changed)
    assert found["picture"] != same[0]["picture"]


def test_turns_and_crops_map_patches():
    size, patch = (32, 32), (8, 8)
    quarter = matches(Changes(rotation=90), size, patch).reshape(4, 4)
    np.testing.assert_array_equal(quarter[0, 1:], [7, 11, 15])  # the top goes to the right
    middle = matches(Changes(crop=0.5), size, patch).reshape(4, 4)
    assert (middle[0] == -1).all() and middle[1, 1] == 5 and middle[2, 2] == 15
    gray = np.full((32, 32, 3), 90, np.uint8)
    assert (Changes(rotation=33, crop=0.3, down=0.1).apply(gray) == 90).all()
    assert (Changes(noise=0.1).apply(gray) != 90).any()


def test_patches_of_an_expert(server, models):
    names = [ask_json(server, "/api/images", picture(seed))[1]["image"] for seed in range(2)]
    expert = int(models[0].routing([picture(0)])["encoderblock_1"].experts[0, 1, 0])
    path = f"/api/patches?model=0&block=encoderblock_1&expert={expert}"
    status, found = ask_json(server, path)
    assert status == 200 and found
    gates = [patch["gate"] for patch in found]
    assert gates == sorted(gates, reverse=True)
    assert {patch["image"] for patch in found} <= set(names)


def test_hostile_requests_get_one_line(server):
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    small = picture(size=(1, 1))
    bomb = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
    requests = [
        ("/api/images", b"no picture", 400, "cannot be read as a picture"),
        ("/api/images", b"", 400, "cannot be read as a picture"),
        ("/api/images", picture()[:200], 400, "cannot be read as a picture"),
        ("/api/images", bomb, 400, "more than 50,000,000"),
        ("/api/images", b"x" * (MAX_BYTES + 1), 400, "are more than 200,000"),
        ("/api/look", b"[" * 9000, 400, ""),
        ("/api/look", b"[1]", 400, "expected an object"),
        ("/api/look", b'{"image": "x"}', 400, "no longer kept"),
        ("/api/look", b'{"changes": {"noise": 9}}', 400, "expected a number from 0.0 to 0.5"),
        ("/api/look", b'{"changes": {"noise": NaN}}', 400, "expected a number"),
        ("/api/look", b'{"changes": {"blur": 1}}', 400, "'blur': unknown; allowed: noise"),
        ("/api/patches?model=7&block=x&expert=0", None, 400, "model 7"),
        ("/api/patches?model=0&block=x&expert=0", None, 400, "no such expert"),
        ("/api/patches?model=a", None, 400, "expected model=NUMBER"),
        ("/../../etc/passwd", None, 404, "no such page"),
        ("/api/nothing", b"", 404, "no such page"),
    ]
    for path, body, status, message in requests:
        found, answer = ask_json(server, path, body)
        assert found == status, path
        assert message in answer["error"] and "\n" not in answer["error"], answer
    # A name that resolves to this machine does not reach it, and it still answers.
    assert ask(server, "/", headers=[("Host", "evil.example:80")])[0] == 403
    assert ask(server, "/api/models")[0] == 200


def test_old_pictures_make_room(server):
    names = [ask_json(server, "/api/images", picture(seed))[1]["image"] for seed in range(4)]
    assert look(server, names[0])[0] == 400
    assert look(server, names[1])[0] == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b", "c"], "at most 2 models are shown"),
        (["{missing}"], "holds no configuration"),
        (["{run}", "--host=1.2.3.4", "--port=1"], "cannot be listened on"),
    ],
)
def test_mistakes_are_one_line(finished, tmp_path, capsys, arguments, message):
    paths = {"missing": tmp_path / "missing", "run": finished[0]}
    assert main([argument.format(**paths) for argument in arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


# ---- In a browser ----


def open_page(browser, server, width=1200):
    for log in ("browser", "performance"):
        browser.get_log(log)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(address(server))
    wait(browser, "return document.querySelectorAll('#models article').length == 2")


def address(server):
    host, port = server.server_address
    return f"http://{host}:{port}/"


def wait(browser, script):
    WebDriverWait(browser, 60).until(lambda driver: driver.execute_script(script))


def drop(browser, *paths):
    browser.find_element(By.ID, "file").send_keys("\n".join(map(str, paths)))


def move(browser, name, value):
    script = """
        const input = document.querySelector(`input[name=${arguments[0]}]`);
        input.value = arguments[1];
        input.dispatchEvent(new Event("input", {bubbles: true}));
    """
    browser.execute_script(script, name, value)


@pytest.fixture
def photos(tmp_path):
    paths = [tmp_path / f"{HOSTILE.replace('/', '')}.png", tmp_path / "second.jpg"]
    paths[0].write_bytes(picture(0))
    paths[1].write_bytes(picture(1, form="JPEG"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    return [*paths, broken]


FIRST = "document.querySelector('[data-model=\"0\"]')"


@pytest.mark.parametrize("width", WIDTHS)
def test_a_reader_plays_with_it(browser, server, photos, width):
    open_page(browser, server, width)
    drop(browser, *photos)
    wait(browser, "return document.getElementById('message').textContent.includes('broken.png')")
    assert browser.execute_script("return document.querySelectorAll('#pictures img').length") == 2
    for number in (0, 1):
        section = f"document.querySelector('[data-model=\"{number}\"]')"
        rects = browser.execute_script(f"return {section}.querySelectorAll('rect').length")
        assert rects == 16
        classes = browser.execute_script(f"return {section}.querySelector('ol').children.length")
        assert classes == 5
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width

    # A slider changes the picture and reports which experts changed.
    before = browser.execute_script(f"return {FIRST}.querySelector('.map img').src")
    move(browser, "noise", 0.5)
    wait(browser, f"return {FIRST}.querySelector('.map img').src != {json.dumps(before)}")
    move(browser, "right", 0.5)
    wait(browser, "return !state.busy && state.answers[0].matches.includes(-1)")
    crosses = browser.execute_script(f"return {FIRST}.querySelectorAll('path:not(.under)').length")
    changed = "return state.answers[0].blocks.encoderblock_1.changed.length"
    assert crosses == browser.execute_script(changed)

    # A patch says its gates and its match, in both models.
    browser.find_element(By.CSS_SELECTOR, "[data-model='0'] rect[data-patch='3']").click()
    says = browser.execute_script(f"return {FIRST}.textContent")
    assert "Row 1, column 4: expert" in says and "(gate 0." in says
    assert "In the picture without changes: row 1, column 2" in says
    marked = "return document.querySelectorAll('rect.marked').length"
    assert browser.execute_script(marked) == 2

    # An expert shows its patches.
    expert = browser.execute_script("return state.answers[0].blocks.encoderblock_1.experts[0][0]")
    browser.find_element(By.CSS_SELECTOR, f"[data-model='0'] [data-expert='{expert}']").click()
    wait(browser, f"return {FIRST}.querySelectorAll('.patches img').length > 0")
    assert browser.execute_script("return document.querySelectorAll('[onerror]').length") == 0
    logs = browser.get_log("browser")
    # Chromium itself reports the refusal of the broken file.
    assert [log["message"] for log in logs if "400 (Bad Request)" not in log["message"]] == []
    requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        request["params"]["request"]["url"]
        for request in requests
        if request["method"] == "Network.requestWillBeSent"
    ]
    assert all(url.startswith((address(server), "data:", "blob:", "chrome:")) for url in urls), urls
    assert quote(HOSTILE) not in "".join(urls)
