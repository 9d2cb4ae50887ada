"""Does the search service stand load, and malice?

    python benchmarks/search_load.py EXPORTED PICTURES            32 clients at a time for a minute
    python benchmarks/search_load.py EXPORTED PICTURES --fuzz     12,000 malformed requests and image bombs

The service runs as users run it (`clipling search serve`), in a process of its own, and is asked over the loopback only; the
clients share the machine with it. PICTURES are indexed first. Load: half text queries (nearly every one another text), the rest
similar pictures, refined queries, labels, thumbnails, originals and uploads. Fuzz: tests/deploy/search/malformed.py, from a fixed seed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))
from common import load, save  # noqa: E402

CLIENTS, SECONDS = 32, 60.0
FUZZ, FUZZ_SECONDS, AT_ONCE, SEED = 12_000, 1800.0, 8, 0
WORDS = ["a", "dog", "cat", "child", "man", "woman", "red", "blue", "black", "white", "runs", "jumps", "sits", "over", "on", "the", "grass"]
WORDS += [
    "water",
    "snow",
    "street",
    "beach",
    "ball",
    "bicycle",
    "tree",
    "two",
    "under",
    "green",
    "small",
    "people",
    "window",
    "boat",
    "sky",
]


@contextmanager
def service(index: Path):
    """(port, process, path of its log) of a running service, which must still run at the end."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with open(log, "w") as out:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(
                [sys.executable, "-m", "clipling", "search", "serve", str(index), "--port", "0"], stderr=out, env=environment
            )
        try:
            end = time.monotonic() + 120
            while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
            while not ready(int(found[1])):
                time.sleep(0.1)
            yield int(found[1]), process, log
            assert process.poll() is None, f"the service has ended: {log.read_text()[-2000:]}"
        finally:
            process.terminate()
            process.wait(30)


def ready(port: int) -> bool:
    try:
        return ask(port, "/api/health")[0] == 200
    except OSError:
        return False


def ask(port: int, path: str, connection: http.client.HTTPConnection | None = None) -> tuple[int, bytes]:
    connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def memory(process: subprocess.Popen) -> float:
    """MB of anonymous memory."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]) / 1024


def one_request(rng: random.Random, pictures: int) -> tuple[str, str]:
    """(kind, path)."""
    text = " ".join(rng.choices(WORDS, k=rng.randint(2, 9)))
    kind = rng.choices(["text", "similar", "refined", "labels", "thumbnail", "original", "upload"], [50, 12, 8, 8, 12, 5, 5])[0]
    number, other = rng.randint(1, pictures), rng.randint(1, pictures)
    paths = {
        "text": "/api/search?" + urlencode({"text": text, "k": 40}),
        "similar": f"/api/search?similar={number}&k=40",
        "refined": "/api/search?" + urlencode({"text": text, "like": number, "unlike": other, "k": 40}),
        "labels": "/api/search?" + urlencode({"text": text, "label": ["cat", "dog", "child", "bicycle"], "k": 40}, doseq=True),
        "thumbnail": f"/api/pictures/{number}/thumbnail",
        "original": f"/api/pictures/{number}/original",
        "upload": "/api/uploads",
    }
    return kind, paths[kind]


def client(port: int, seed: int, pictures: int, photos: list[bytes], end: float, found: list[tuple[str, int, float]]) -> None:
    rng, connection = random.Random(seed), http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while time.monotonic() < end:
        kind, path = one_request(rng, pictures)
        begun = time.perf_counter()
        try:
            if kind == "upload":
                part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"'
                body = part + 2 * b"\r\n" + rng.choice(photos) + b"\r\n--b--\r\n"
                connection.request("POST", path, body, {"Content-Type": "multipart/form-data; boundary=b"})
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            else:
                status, _ = ask(port, path, connection)
        except (OSError, http.client.HTTPException):
            status = 0
            connection.close()
        found.append((kind, status, 1000 * (time.perf_counter() - begun)))


def run_load(index: Path, pictures: int, photos: list[bytes]) -> dict[str, Any]:
    with service(index) as (port, process, _):
        found: list[tuple[str, int, float]] = []
        before, begun = memory(process), time.monotonic()
        shared = (pictures, photos, begun + SECONDS, found)
        threads = [threading.Thread(target=client, args=(port, i, *shared)) for i in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds, after = time.monotonic() - begun, memory(process)
    bad = Counter(str(status) for _, status, _ in found if status not in (200, 201))
    kinds = sorted({kind for kind, _, _ in found})
    return {
        "clients": CLIENTS, "seconds": round(seconds, 1), "requests": len(found), "errors": dict(bad),
        "requests_per_s": round(len(found) / seconds, 1), **times([t for _, _, t in found]),
        "by_kind": {kind: of_kind(found, kind) for kind in kinds},
        "memory_mb": {"before": round(before), "after": round(after)},
    }  # fmt: skip


def of_kind(found: list[tuple[str, int, float]], kind: str) -> dict[str, float]:
    taken = [milliseconds for other, _, milliseconds in found if other == kind]
    return {"requests": len(taken), **times(taken)}


def times(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100) if len(values) > 1 else values * 99
    return {"p50_ms": round(cuts[49], 1), "p95_ms": round(cuts[94], 1), "p99_ms": round(cuts[98], 1)}


def run_fuzz(index: Path, count: int) -> dict[str, Any]:
    from tests.deploy.search.live import exchange, status_of
    from tests.deploy.search.malformed import PATIENCE, SECRET, bomb, requests

    rng = random.Random(SEED)
    # Bombs cost seconds of decoding each: they are fewer than the rest, and last.
    sent = requests(count, SEED, large=False) + [("bomb", bomb(rng)) for _ in range(count // 100)]
    lock = threading.Lock()
    kinds: dict[str, Counter[str]] = {}
    bad: list[str] = []
    with service(index) as (port, process, log):
        before, begun, most = memory(process), time.monotonic(), 0.0

        def one(case: tuple[str, bytes]) -> None:
            nonlocal most
            if time.monotonic() - begun > FUZZ_SECONDS:
                return
            kind, data = case
            try:
                answer = exchange(port, data, timeout=90, patience=PATIENCE.get(kind))
            except OSError:
                answer = b""
            status = status_of(answer)
            with lock:
                kinds.setdefault(kind, Counter())[str(status or "no answer")] += 1
            most = max(most, memory(process))
            wrong = (status or 0) >= 500 and status != 503  # which is the answer of a service that has enough to do
            if wrong or (status is None and kind not in PATIENCE) or SECRET in answer or b"root:x:" in answer or b"Traceback" in answer:
                bad.append(f"{kind} {status}: {data[:120]!r}")

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(one, sent))
        healthy = ask(port, "/api/health")[0] == 200
        errors = log.read_text().count("unexpected, at") + log.read_text().count("Traceback")
        alive = process.poll() is None
        after = memory(process)
    return {
        "seed": SEED, "requests": sum(sum(found.values()) for found in kinds.values()), "of": len(sent),
        "seconds": round(time.monotonic() - begun, 1), "statuses": {kind: dict(sorted(found.items())) for kind, found in kinds.items()},
        "bad": bad[:20], "bad_count": len(bad), "errors_in_the_log": errors,
        "alive": alive, "healthy": healthy, "memory_mb": {"before": round(before), "most": round(most), "after": round(after)},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exported")
    parser.add_argument("pictures")
    parser.add_argument("--fuzz", action="store_true")
    parser.add_argument("--requests", type=int, default=FUZZ, help="of --fuzz")
    arguments = parser.parse_args()
    result = load("search_load")
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        command = [
            sys.executable,
            "-m",
            "clipling",
            "search",
            "index",
            arguments.exported,
            arguments.pictures,
            "--out",
            str(index),
            "--json",
        ]
        made = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}).stdout)
        result["index"] = {key: made[key] for key in ("pictures", "model", "ranking", "seconds")}
        if arguments.fuzz:
            (Path(folder) / "secret.txt").write_bytes(b"SECRET-OUTSIDE-OF-THE-FOLDER")
            result["arms"]["fuzz"] = run_fuzz(index, arguments.requests)
        else:
            photos = [path.read_bytes() for path in sorted(Path(arguments.pictures).rglob("*.jp*g"))[:50]]
            result["arms"]["load"] = run_load(index, made["pictures"], photos)
    save(result)
    print(json.dumps(result["arms"]["fuzz" if arguments.fuzz else "load"], indent=2))


if __name__ == "__main__":
    socket.setdefaulttimeout(120)
    main()
