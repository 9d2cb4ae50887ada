"""Malformed requests and image bombs, a fixed few of them: no crash, no 500, nothing from outside of the folder.

The whole of it, ten thousand and more, is `python benchmarks/search_load.py --fuzz`.
"""

from __future__ import annotations

import json
import logging

import pytest

pytest.importorskip("fastapi")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from clipling.deploy.search.index import update
from clipling.deploy.search.search import Search
from clipling.deploy.search.service import make_app
from tests.deploy.search.live import exchange, get, served, status_of
from tests.deploy.search.making import ABOUT, ColourModel, folder_of
from tests.deploy.search.malformed import PATIENCE, SECRET, bomb, requests


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "secret.txt").write_bytes(SECRET)
    update(ColourModel(), ABOUT, str(folder_of(folder / "photos", 20)), folder / "index")
    return Search(folder / "index", model=ColourModel())


@pytest.fixture(scope="module")
def port(search):
    with served(search) as found:
        yield found


def told(answer: bytes) -> bool:
    """Whether the first answer is in the service's own form; uvicorn and h11 refuse what is not HTTP at all in one plain line."""
    head, _, body = answer.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    if fields.get(b"content-type", b"").startswith(b"text/plain"):
        return b"Invalid HTTP request received." in body
    body = body[: int(fields[b"content-length"])]
    return not body or set(json.loads(body)) == {"detail"}  # none for HEAD


def assert_stood(port, answers, caplog):
    for kind, sent, answer in answers:
        status = status_of(answer)
        # Only what is not whole may stay without an answer.
        assert kind in PATIENCE or status is not None, (kind, sent[:300])
        assert status is None or status < 500, (kind, sent[:300], answer[:500])
        assert SECRET not in answer, sent[:300]
        assert b"Traceback" not in answer, sent[:300]
        assert b"root:" not in answer, sent[:300]
        if status is not None and status >= 400:
            assert told(answer), answer[:500]
    assert get(port, "/api/health")[0] == 200
    # Pillow tells its own log of broken pictures; what counts is what the service and the server had to say.
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR and not record.name.startswith("PIL.")]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_malformed_requests(port, caplog, seed):
    sent = requests(200, seed, large=False)
    assert_stood(port, [(kind, data, exchange(port, data, patience=PATIENCE.get(kind))) for kind, data in sent], caplog)


@pytest.mark.slow
def test_bombs(port, caplog):
    import random

    rng = random.Random(0)
    sent = [bomb(rng) for _ in range(60)]
    assert_stood(port, [("bomb", data, exchange(port, data)) for data in sent], caplog)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    text=st.text(max_size=60), labels=st.lists(st.text(max_size=20), max_size=4), like=st.lists(st.integers(), max_size=4), k=st.integers()
)
def test_any_text_labels_and_numbers(client, text, labels, like, k):
    given = {
        "text": text.encode("utf-8", "replace").decode(),
        "like": like,
        "k": k,
        "label": [x.encode("utf-8", "replace").decode() for x in labels],
    }
    answer = client.get("/api/search", params=given)
    assert answer.status_code in (200, 404, 422)
    answer.json()


@pytest.fixture(scope="module")
def client(search):
    with TestClient(make_app(search, threads=1), base_url="http://127.0.0.1:8000") as made:
        yield made
