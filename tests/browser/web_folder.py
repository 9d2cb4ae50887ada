"""A web folder of a tiny model, a plain file server for it on the loopback, and a page that notes everything that goes wrong."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipling.deploy.export import export_fp32
from clipling.deploy.quantise import dynamic, prepared
from clipling.deploy.web import write_web
from clipling.deploy.web_packages import ONNXRUNTIME, TOKENIZERS
from clipling.models.hub import new_student
from clipling.runtime.manifest import read_manifest
from clipling.store import cache_dir
from tests.teaching import teacher_config

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CACHED = all((cache_dir() / "web" / package.packed).is_file() for package in (ONNXRUNTIME, TOKENIZERS))
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
needs_npm = pytest.mark.skipif(not CACHED and shutil.which("npm") is None, reason="no npm on this machine, nor its packages in the cache")
OPEN = """async () => { const { Engine } = await import(new URL('engine.js', location.href));
    window.engine = new Engine(); await engine.open(); }"""  # the page's engine, a second time, for asking it directly


def exported(folder: Path) -> tuple[Path, Path]:
    """Two exported folders of one student: with fp32 alone, and with int8 of both towers beside it."""
    plain, whole = folder / "fp32", folder / "int8"
    plain.mkdir(parents=True)
    export_fp32(new_student(teacher_config(), seed=5).eval(), plain, "tiny")
    shutil.copytree(plain, whole)
    import onnx

    manifest = read_manifest(whole)
    for side in ("image", "text"):
        onnx.save(dynamic(prepared(plain / f"{side}.onnx", static=False)), whole / f"{side}.int8.onnx")
        manifest = manifest.with_file(side, "int8", f"{side}.int8.onnx")
    manifest.write(whole)
    return plain, whole


def site(folder: Path) -> Path:
    """A root with the two web folders some levels down: the page must work from any sub-path."""
    for kind, model in zip(("fp32", "int8"), exported(folder / "models")):
        write_web(model, folder / "root" / "some" / "where" / kind)
    return folder / "root"


@contextlib.contextmanager
def served(root: Path, headers: dict[str, str] | None = None) -> Iterator[str]:
    """The address of a static server of `root`; it knows nothing of .mjs or .wasm, as many do not."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", "": "application/octet-stream"}  # noqa: RUF012

        def log_message(self, *args: Any) -> None:
            pass

        def end_headers(self) -> None:
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            super().end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Pages:
    """Opens pages; `trouble` gathers console messages, errors, and requests that went anywhere but to `address`."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser, self.address, self.contexts, self.trouble = browser, address, [], []

    def open(self, path: str = "/some/where/fp32/", ready: str = "yes", context: Any = None, **options: Any) -> Any:
        if context is None:
            context = self.browser.new_context(viewport={"width": 1400, "height": 900}, **options)
            self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: self.trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        own = (self.address, f"blob:{self.address}", "data:")
        context.on("request", lambda request: None if request.url.startswith(own) else self.trouble.append(f"asked for {request.url}"))
        page.goto(self.address + path)
        page.wait_for_selector(f"html[data-ready={ready}]", state="attached", timeout=60_000)
        return page

    def close(self) -> None:
        for context in self.contexts:
            context.close()


def files(names: dict[str, bytes], kind: str = "image/png") -> list[dict[str, Any]]:
    """What playwright takes for files."""
    return [{"name": name, "mimeType": kind, "buffer": data} for name, data in names.items()]


def drop(page: Any, names: dict[str, bytes], target: str = "#empty, #found") -> None:
    """Drags files over the page and drops them on `target`, as a user's file manager does."""
    given = [[name, base64.b64encode(data).decode()] for name, data in names.items()]
    page.evaluate(
        """([files, target]) => { const transfer = new DataTransfer();
        for (const [name, data] of files) transfer.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name,
            { type: name.endsWith('.txt') ? 'text/plain' : 'image/png', lastModified: 1 }));
        const fire = (kind, on) => on.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
        fire('dragenter', document.body);
        const on = [...document.querySelectorAll(target)].find(e => e.offsetParent !== null || e.closest('#drop'));
        fire('dragover', on); fire('drop', on); }""",
        [given, target],
    )
