"""The API: what it answers, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import socket
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
from starlette.testclient import TestClient

from clipling.deploy.search.hosts import Hosts, host_name
from clipling.deploy.search.index import update
from clipling.deploy.search.limits import Limits
from clipling.deploy.search.search import Search
from clipling.deploy.search.service import make_app
from tests.deploy.search.live import exchange, get, served, status_of
from tests.deploy.search.making import ABOUT, COLOURS, ColourModel, folder_of, picture

HERE = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    update(ColourModel(), ABOUT, str(folder_of(folder / "photos", 40)), folder / "index")
    return folder


@pytest.fixture(scope="module")
def search(place):
    return Search(place / "index", model=ColourModel())


@pytest.fixture
def client(search):
    with TestClient(make_app(search, threads=2), base_url=HERE) as made:
        yield made


def png(colour=(220, 30, 30), size=(20, 20)) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", size, colour).save(held, "PNG")
    return held.getvalue()


def keys(answer):
    assert answer.status_code == 200, answer.text
    return [hit["key"] for hit in answer.json()["results"]]


def test_text(client, search):
    answer = client.get("/api/search", params={"text": "red", "k": 5}).json()
    assert [hit["key"] for hit in answer["results"]] == [hit.key for hit in search.query("red", 5)]
    assert answer["results"][0]["key"] == "red/0.png"
    assert answer["results"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert answer["pictures"] == 40
    assert answer["took_ms"] >= 0


def test_similar_leaves_out_what_was_clicked(client, search):
    first = search.query("blue", 1)[0]
    found = client.get("/api/search", params={"similar": first.id, "k": 3}).json()["results"]
    assert all(hit["key"].startswith("blue/") for hit in found)
    assert first.id not in [hit["id"] for hit in found]


def test_refining_is_rocchio(client, search):
    ids = {name: search.query(name, 1)[0].id for name in ("green", "blue", "yellow")}
    asked = search.text("red")
    rows = {name: search.embedding(number) for name, number in ids.items()}
    vector = asked + 0.75 * (rows["green"] + rows["blue"]) / 2 - 0.15 * rows["yellow"]
    vector /= np.linalg.norm(vector)
    given = {"text": "red", "like": [ids["green"], ids["blue"]], "unlike": [ids["yellow"]], "k": 39}
    found = client.get("/api/search", params=given).json()["results"]
    assert ids["yellow"] not in [hit["id"] for hit in found]
    for hit in found:
        assert hit["score"] == pytest.approx(float(search.embedding(hit["id"]) @ vector), abs=1e-5)


def test_upload_and_search_by_it(client):
    made = client.post("/api/uploads", files={"file": ("x.png", png(COLOURS["purple"]))})
    assert made.status_code == 201
    assert (made.json()["width"], made.json()["height"]) == (20, 20)
    found = keys(client.get("/api/search", params={"upload": made.json()["upload"], "k": 4}))
    assert all(key.startswith("purple/") for key in found)
    small = client.get(made.json()["thumbnail"])
    assert Image.open(io.BytesIO(small.content)).size == (20, 20)
    shares = client.get("/api/labels", params={"label": ["red", "purple", "blue"], "upload": made.json()["upload"]}).json()["labels"]
    assert shares[0]["label"] == "purple"


def test_labels_are_the_softmax(client, search):
    given = {"text": "red", "label": ["red", "orange", "blue"], "k": 2}
    for hit in client.get("/api/search", params=given).json()["results"]:
        logits = [30 * float(search.embedding(hit["id"]) @ search.text(f"a photo of a {name}.")) for name in given["label"]]
        wanted = [np.exp(value) / sum(np.exp(other) for other in logits) for value in logits]
        assert [label["label"] for label in hit["labels"]] == given["label"]
        assert [label["probability"] for label in hit["labels"]] == pytest.approx(wanted, abs=1e-5)


def test_sample_is_spread_over_the_index(client):
    found = client.get("/api/sample", params={"k": 4}).json()["results"]
    assert [hit["id"] for hit in found] == [1, 14, 27, 40]
    assert all(hit["score"] is None for hit in found)


def test_thumbnail_and_original(client, place, search):
    hit = client.get("/api/search", params={"text": "red", "k": 1}).json()["results"][0]
    small, whole = client.get(hit["thumbnail"]), client.get(hit["original"])
    assert Image.open(io.BytesIO(small.content)).format == "WEBP"
    assert whole.content == (place / "photos" / hit["key"]).read_bytes()
    assert whole.headers["content-type"] == "image/png"
    assert whole.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert whole.headers["x-content-type-options"] == "nosniff"


def test_health_openapi_and_page(client):
    health = client.get("/api/health").json()
    assert (health["status"], health["pictures"], health["model"], health["ranking"]) == ("ok", 40, "colours", "exact")
    described = client.get("/api/openapi.json").json()
    assert "/api/search" in described["paths"]
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert client.get("/", headers={"if-none-match": page.headers["etag"]}).status_code == 304
    for name in ("app.js", "style.css", "state.js", "icon.svg"):
        assert client.get(f"/page/{name}").status_code == 200
    assert client.get("/docs").status_code == 404


def test_the_page_loads_nothing_from_elsewhere():
    from clipling.deploy.search.service import PAGE

    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text, path.name
        assert "https:" not in text, path.name


BAD = {
    "/api/search": 422,
    "/api/search?unlike=3": 422,
    "/api/search?text=%20%20": 422,
    "/api/search?text=" + "x" * 1001: 422,
    "/api/search?text=a&k=0": 422,
    "/api/search?text=a&k=201": 422,
    "/api/search?text=a&k=nan": 422,
    "/api/search?text=a&label=one": 422,
    "/api/search?text=a&label=one&label=one": 422,
    "/api/search?text=a&label=a&label=" + "x" * 201: 422,
    "/api/search?text=a&" + "label=a&" * 51: 422,
    "/api/search?text=a&" + "like=1&" * 101: 422,
    "/api/search?similar=999": 404,
    "/api/search?similar=-1": 422,
    "/api/search?similar=" + "9" * 30: 422,
    "/api/search?similar=" + "9" * 5000: 422,
    "/api/search?text=a&like=999": 404,
    "/api/search?upload=none": 404,
    "/api/search?text=" + "a" * 17000: 414,
    "/api/labels?label=a&label=b": 422,
    "/api/labels?label=a&label=b&picture=1&upload=x": 422,
    "/api/pictures/0": 422,
    "/api/pictures/41": 404,
    "/api/pictures/41/thumbnail": 404,
    "/api/pictures/x/original": 422,
    "/api/pictures/1/../../index/catalogue.sqlite": 404,
    "/page/../service.py": 404,
    "/page/%2e%2e/service.py": 404,
    "/page/..%2fservice.py": 404,
    "/page//etc/passwd": 404,
    "//etc/passwd": 404,
}


@pytest.mark.parametrize("address", BAD, ids=lambda address: address[:40])
def test_what_is_refused(client, address):
    answer = client.get(address)
    assert answer.status_code == BAD[address], answer.text
    assert set(answer.json()) == {"detail"}
    assert len(answer.json()["detail"]) < 2000
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty"), (b"GIF89a", "picture"), (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"), (png()[:60], "")],
)
def test_uploads_that_are_no_pictures(client, content, says):
    answer = client.post("/api/uploads", files={"file": ("x.png", content)})
    assert answer.status_code == 422
    assert says in answer.json()["detail"]


def test_an_upload_of_too_many_pixels_is_refused_by_its_header(search):
    with TestClient(make_app(search, Limits(pixels=1000), threads=1), base_url=HERE) as client:
        assert client.post("/api/uploads", files={"file": png(size=(31, 32))}).status_code == 201
        assert "limit of 1,000" in client.post("/api/uploads", files={"file": png(size=(32, 32))}).json()["detail"]


def test_a_large_upload_is_halved_and_says_the_same(client):
    made = client.post("/api/uploads", files={"file": png(COLOURS["purple"], (4100, 4000))}).json()
    assert (made["width"], made["height"]) == (4100, 4000)
    found = client.get("/api/search", params={"upload": made["upload"], "k": 1}).json()["results"][0]
    assert found["key"].startswith("purple/")
    assert found["score"] == pytest.approx(1, abs=1e-4)


def test_icons_hide_large_frames_and_are_refused(client):
    held = io.BytesIO()
    Image.new("RGB", (64, 64)).save(held, "ICO")
    assert "icons" in client.post("/api/uploads", files={"file": held.getvalue()}).json()["detail"]


def test_old_uploads_are_forgotten(search):
    with TestClient(make_app(search, Limits(uploads_kept=2), threads=1), base_url=HERE) as client:
        names = [client.post("/api/uploads", files={"file": png((i, i, i))}).json()["upload"] for i in range(3)]
        assert [client.get("/api/search", params={"upload": name}).status_code for name in names] == [404, 200, 200]


def test_methods(client):
    assert client.post("/api/search").status_code == 405
    assert client.delete("/api/pictures/1").status_code == 405
    assert client.get("/api/uploads").status_code == 405


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "192.168.1.5", "", "localhost:x", "[::1"])
def test_foreign_host_names_are_refused(client, host):
    assert client.get("/api/health", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "127.5.5.5"])
def test_names_of_this_machine_are_taken(client, host):
    assert client.get("/api/health", headers={"host": host}).status_code == 200


def test_hosts_beyond_loopback():
    hosts = Hosts("0.0.0.0", ["photos.example"])
    assert hosts.allow("192.168.1.5:8000")
    assert hosts.allow("photos.example")
    assert not hosts.allow("evil.example")
    assert host_name("[::1]:80") == "::1"
    assert host_name("a b") == "a b"
    assert host_name(":80") is None


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}],
)
def test_pages_from_elsewhere_may_not_upload(client, headers):
    assert client.post("/api/uploads", files={"file": png()}, headers=headers).status_code == 403


def test_the_own_page_may_upload(client):
    headers = {"origin": HERE, "sec-fetch-site": "same-origin"}
    assert client.post("/api/uploads", files={"file": png()}, headers=headers).status_code == 201


@pytest.fixture
def alone(tmp_path):
    """An index that a test may spoil."""
    photos = folder_of(tmp_path / "photos", 10)
    update(ColourModel(), ABOUT, str(photos), tmp_path / "index")
    search = Search(tmp_path / "index", model=ColourModel())
    with TestClient(make_app(search, threads=1), base_url=HERE) as client:
        number = search.query("red", 1)[0].id
        yield photos / "red" / "0.png", f"/api/pictures/{number}/original", client


def test_originals_that_changed_or_went_are_not_given_out(alone, tmp_path):
    path, address, client = alone
    kept = path.read_bytes()
    assert client.get(address).content == kept
    same_length = bytes(len(kept))
    path.write_bytes(same_length)
    assert client.get(address).status_code == 404
    path.unlink()
    assert client.get(address).status_code == 404
    (tmp_path / "secret").write_bytes(b"secret" * 10)
    path.symlink_to(tmp_path / "secret")
    assert client.get(address).status_code == 404
    # Even the very bytes that were indexed are not read from outside of the folder.
    path.unlink()
    (tmp_path / "outside.png").write_bytes(kept)
    path.symlink_to(tmp_path / "outside.png")
    assert client.get(address).status_code == 404
    path.unlink()
    os.mkfifo(path)
    assert client.get(address).status_code == 404
    path.unlink()
    path.write_bytes(kept)
    assert client.get(address).status_code == 200


def test_a_copy_answers_for_a_file_that_went(tmp_path):
    photos = folder_of(tmp_path / "photos", 3)
    (photos / "z.png").write_bytes((photos / "red" / "0.png").read_bytes())
    update(ColourModel(), ABOUT, str(photos), tmp_path / "index")
    search = Search(tmp_path / "index", model=ColourModel())
    (photos / "red" / "0.png").unlink()
    with TestClient(make_app(search, threads=1), base_url=HERE) as client:
        hit = client.get("/api/search", params={"text": "red", "k": 1}).json()["results"][0]
        assert hit["copies"] == ["z.png"]
        assert client.get(hit["original"]).status_code == 200


def test_the_unexpected_is_logged_and_not_told(search, caplog):
    class Broken(ColourModel):
        def encode_text(self, texts):
            raise RuntimeError("a secret in /home/user")

    broken = Search(search.folder, model=Broken())
    with TestClient(make_app(broken, threads=1), base_url=HERE, raise_server_exceptions=False) as client:
        answer = client.get("/api/search", params={"text": "red"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "a secret" in caplog.text


class SlowModel(ColourModel):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def encode_text(self, texts):
        time.sleep(self.seconds)
        return super().encode_text(texts)


def test_too_many_requests_are_sent_away_and_health_answers(search):
    slow = Search(search.folder, model=SlowModel(0.5))
    with served(slow, Limits(at_once=4), threads=4) as port:
        found = []

        def ask(i):
            found.append(get(port, f"/api/search?text=red{i}"))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        assert get(port, "/api/health")[0] == 200
        for thread in threads:
            thread.join()
        codes = sorted(status for status, _, _ in found)
        assert codes.count(200) == 4
        assert codes.count(503) == 8
        assert all(headers["retry-after"] == "1" for status, headers, _ in found if status == 503)
        assert get(port, "/api/search?text=red")[0] == 200


def test_a_request_that_takes_too_long_ends(search):
    slow = Search(search.folder, model=SlowModel(4.0))
    with served(slow, Limits(request=0.4), threads=1) as port:
        begun = time.monotonic()
        status, headers, body = get(port, "/api/search?text=red")
        assert (status, headers["retry-after"]) == (503, "5")
        assert time.monotonic() - begun < 3
        assert "0.4 s" in json.loads(body)["detail"]


LIMITS = Limits(head=1.5, body_time=1.0, upload=50_000, body=1000)


@pytest.fixture(scope="module")
def port(search):
    with served(search, LIMITS) as found:
        yield found


HOST = b"Host: 127.0.0.1\r\n"


def test_a_head_that_never_ends_is_not_waited_for(port):
    begun = time.monotonic()
    for sent in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: loc"):
        exchange(port, sent)
    assert time.monotonic() - begun < 3 * 4


def gone(connection: socket.socket) -> bool:
    """Whether the other side has closed: it answers what comes now by a reset."""
    for _ in range(20):
        try:
            connection.sendall(b"x")
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_a_head_that_comes_byte_by_byte_is_not_waited_for(port):
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        with suppress(OSError):
            for byte in b"GET / HTTP/1.1\r\nX-Slow: " + 40 * b"x":
                connection.sendall(bytes([byte]))
                time.sleep(0.1)
        assert gone(connection)
    assert time.monotonic() - begun < 6


def test_a_body_that_does_not_come_ends_the_request(port):
    begun = time.monotonic()
    answer = exchange(port, b"POST /api/uploads HTTP/1.1\r\n" + HOST + b"Content-Length: 40000\r\n\r\nabc")
    assert status_of(answer) == 408
    assert time.monotonic() - begun < 4


def chunked(path: bytes, size: int) -> bytes:
    chunk = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
    head = (
        b"POST "
        + path
        + b" HTTP/1.1\r\n"
        + HOST
        + b"Transfer-Encoding: chunked\r\nContent-Type: multipart/form-data; boundary=b"
        + 2 * b"\r\n"
    )
    return head + chunk * (size // 0x1000) + b"0\r\n\r\n"


@pytest.mark.parametrize(("path", "size"), [(b"/api/uploads", 90_000), (b"/api/search", 5000), (b"/nowhere", 5000)])
def test_bodies_are_bounded_also_without_a_length(port, path, size):
    assert status_of(exchange(port, chunked(path, size))) == 413


@pytest.mark.parametrize("length", [b"50001", b"9" * 30])
def test_a_stated_length_is_refused_at_once(port, length):
    answer = exchange(port, b"POST /api/uploads HTTP/1.1\r\n" + HOST + b"Content-Length: " + length + b"\r\n\r\n")
    assert status_of(answer) in (400, 413)


def test_get_with_a_body_is_bounded(port):
    sent = b"GET /api/health HTTP/1.1\r\n" + HOST + b"Content-Length: 2000\r\n\r\n" + b"x" * 2000
    assert status_of(exchange(port, sent)) == 413


def test_two_hosts_are_refused(port):
    sent = b"GET /api/health HTTP/1.1\r\n" + HOST + b"Host: evil.example\r\n\r\n"
    assert status_of(exchange(port, sent)) in (400, 421)


def test_who_does_not_read_an_answer_is_dropped(tmp_path):
    """A large original, never read: the connection and its buffer do not stay."""
    noise = np.random.default_rng(0).integers(0, 255, (2500, 2500, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(noise).save(tmp_path / "photos" / "large.png", compress_level=0)
    picture(tmp_path / "photos" / "small.png", COLOURS["red"])
    update(ColourModel(), ABOUT, str(tmp_path / "photos"), tmp_path / "index")
    search = Search(tmp_path / "index", model=ColourModel())
    number = next(hit.id for hit in search.query("grey", 2) if hit.key == "large.png")
    with served(search, Limits(request=1.0, head=1.0)) as port, socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(f"GET /api/pictures/{number}/original HTTP/1.1\r\n".encode() + HOST + b"\r\n")
        time.sleep(4.5)
        assert gone(connection)
        assert get(port, "/api/health")[0] == 200
