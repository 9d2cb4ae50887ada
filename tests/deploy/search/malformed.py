"""Requests that no honest client sends, from a seed: broken HTTP, odd queries, paths out of the folder, broken forms, image bombs."""

# One case a line, however long: a table of cases.

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from urllib.parse import quote

from PIL import Image

HOST = b"Host: 127.0.0.1\r\n"
SECRET = b"SECRET-OUTSIDE-OF-THE-FOLDER"
Make = Callable[[random.Random], bytes]


def requests(count: int, seed: int, large: bool = True) -> list[tuple[str, bytes]]:
    """(kind, bytes to send), every kind equally often. large: with bombs of many megapixels."""
    rng = random.Random(seed)
    kinds = {"http": broken_http, "query": odd_query, "path": traversal, "form": broken_form, "picture": broken_picture}
    if large:
        kinds["bomb"] = bomb
    names = list(kinds)
    return [(name, kinds[name](rng)) for name in (names[i % len(names)] for i in range(count))]


# Seconds after which a client closes its side: of these kinds many requests are not whole, and nothing comes for them.
PATIENCE = {"http": 0.5, "form": 0.5}


def get(path: bytes, *headers: bytes) -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"".join(h + b"\r\n" for h in headers) + b"Connection: close\r\n\r\n"


def post(body: bytes, kind: bytes = b"multipart/form-data; boundary=b", *headers: bytes) -> bytes:
    head = b"POST /api/uploads HTTP/1.1\r\n" + HOST + b"Content-Type: " + kind + b"\r\nConnection: close\r\n"
    return head + b"".join(h + b"\r\n" for h in headers) + b"Content-Length: %d\r\n\r\n" % len(body) + body


def form(content: bytes, name: bytes = b"file", filename: bytes = b"x.png", kind: bytes = b"image/png") -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="' + name + b'"; filename="' + filename + b'"\r\nContent-Type: ' + kind
    return head + b"\r\n\r\n" + content + b"\r\n--b--\r\n"


def noise(rng: random.Random, most: int) -> bytes:
    return rng.randbytes(rng.randrange(most))


def broken_http(rng: random.Random) -> bytes:
    whole = get(b"/api/search?text=red")
    at = rng.randrange(len(whole))
    return rng.choice(
        [
            lambda: noise(rng, 400),
            lambda: whole[:at],
            lambda: whole[:at] + noise(rng, 8) + whole[at:],
            lambda: bytes(b ^ (1 << rng.randrange(8)) if rng.random() < 0.05 else b for b in whole),
            lambda: b"GET /" + b"a" * rng.randrange(70_000) + b" HTTP/1.1\r\n" + HOST + b"\r\n",
            lambda: get(b"/api/search?text=red", b"X-Long: " + b"a" * rng.randrange(80_000)),
            lambda: get(b"/api/search?text=red", *[b"X-%d: y" % i for i in range(rng.randrange(3000))]),
            lambda: get(
                b"/api/health", b"Content-Length: " + rng.choice([b"-1", b"1e9", b"99999999999999999999", b"+5", b"0x10", b"", b"5, 6"])
            ),
            lambda: get(b"/api/health", b"Transfer-Encoding: chunked", b"Content-Length: 3") + b"5\r\nabcde\r\n0\r\n\r\n",
            lambda: get(b"/api/health", b"Transfer-Encoding: " + rng.choice([b"gzip", b"chunked, chunked", b"xchunked", b"identity"])),
            lambda: (
                get(b"/api/health", b"Transfer-Encoding: chunked")
                + rng.choice([b"zz\r\n", b"fffffffffffffffff\r\n", b"-5\r\nabc", b"5;" + b"x" * 40_000])
            ),
            lambda: get(b"/api/health", b"Expect: 100-continue", b"Content-Length: 5"),
            lambda: get(b"/api/health", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Key: eA=="),
            lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + noise(rng, 100),
            lambda: b"GET / HTTP/" + rng.choice([b"0.9", b"1.0", b"2.0", b"9.9", b"1.1.1"]) + b"\r\n" + HOST + b"\r\n",
            lambda: (
                rng.choice([b"TRACE", b"CONNECT", b"OPTIONS", b"HEAD", b"PUT", b"PATCH", b"\xff\xfe", b"get"])
                + b" / HTTP/1.1\r\n"
                + HOST
                + b"\r\n"
            ),
            lambda: get(b"http://evil.example/api/health"),
            lambda: b"GET /api/health HTTP/1.1\r\nHost: " + noise(rng, 30).replace(b"\n", b"") + b"\r\n\r\n",
            lambda: whole.replace(b"Connection: close", b"A: b") * rng.randrange(2, 20),
            lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + noise(rng, 200),
        ]
    )()


ODD = [
    *(
        "",
        " ",
        "\0",
        "%",
        "%%",
        "%zz",
        "%00",
        "%ff%fe",
        "%ed%a0%80",
        "%f4%90%80%80",
        "\u202e",
        "\U0001f415" * 50,
        "a" * 999,
        "{c}",
        "{{c}}",
        "{0.__class__}",
    ),
    *(
        "'; DROP TABLE pictures; --",
        "<script>alert(1)</script>",
        "${jndi:ldap://x}",
        "../../etc/passwd",
        "\r\nSet-Cookie: a=b",
        "null",
        "None",
        "[]",
        "{}",
    ),
    *(
        "<|endoftext|>",
        "<|startoftext|>",
        "&#0;",
        "&amp;" * 100,
        "\ufeff",
        "\ufffd",
        "ﷺ" * 200,
        "Z\u0351\u036b" * 200,
        "\n" * 500,
        "1e309",
        "-0",
    ),
]
NUMBERS = [
    *(
        "0",
        "-1",
        "1",
        "2",
        "40",
        "41",
        "1e3",
        "0x10",
        "1.0",
        "1.5",
        "nan",
        "inf",
        "-inf",
        "true",
        "",
        " 1",
        "１",
        "९",
        "1_0",
        "+1",
        "0" * 4000,
        "9" * 4000,
    ),
    *(str(2**31), str(2**53), str(2**62), str(2**63), str(2**64), str(-(2**63)), "null", "[1]"),
]
NAMES = ["text", "upload", "similar", "like", "unlike", "label", "k", "picture", "q", "text[]", "like[0]", "__proto__", "%00", "v"]
ROUTES = [
    "/api/search",
    "/api/search",
    "/api/search",
    "/api/sample",
    "/api/labels",
    "/api/health",
    "/api/openapi.json",
    "/",
    "/api/pictures/1/thumbnail",
]


def odd_query(rng: random.Random) -> bytes:
    parts = []
    for _ in range(rng.randrange(1, rng.choice([3, 12, 150]))):
        name = rng.choice(NAMES)
        value = rng.choice(NUMBERS if name in ("similar", "like", "unlike", "k", "picture") and rng.random() < 0.8 else ODD)
        parts.append(f"{name}={value if rng.random() < 0.2 else quote(value, safe='')}")
    query = rng.choice(["&", "&", "&", ";", "&&", "?"]).join(parts).encode("utf-8", "surrogatepass")
    if rng.random() < 0.8:
        query = query.replace(b" ", b"+").replace(b"\n", b"%0A").replace(b"\r", b"%0D").replace(b"\0", b"%00")
    return get(rng.choice(ROUTES).encode() + b"?" + query)


UP = ["..", "%2e%2e", "%2e.", ".%2e", "..;", "%252e%252e", "..%00", "....", "%c0%ae%c0%ae", "..%5c", "..\\", "%u002e%u002e", ".", "~", ""]
TARGETS = [
    "secret.txt",
    "etc/passwd",
    "etc/passwd%00.png",
    "index/catalogue.sqlite",
    "service.py",
    "proc/self/environ",
    "c:/windows/win.ini",
    "clipling.json",
]


def traversal(rng: random.Random) -> bytes:
    slash = rng.choice(["/", "/", "/", "%2f", "%5c", "\\", "//", "/./"])
    climb = slash.join([rng.choice(UP) for _ in range(rng.randrange(1, 9))] + [rng.choice(TARGETS)])
    before = rng.choice(
        [
            "/",
            "//",
            "/page/",
            "/page",
            "/api/",
            "/api/pictures/",
            "/api/pictures/1/",
            "/api/pictures/1/original/",
            "/api/uploads/",
            "/static/",
        ]
    )
    after = rng.choice(["", "", "/original", "/thumbnail", "?v=1", "#x", "%00", ".png"])
    return get((before + climb + after).encode("utf-8"))


def broken_form(rng: random.Random) -> bytes:
    whole = form(small_png())
    at = rng.randrange(len(whole))
    return rng.choice(
        [
            lambda: post(whole[:at]),
            lambda: post(whole[:at] + noise(rng, 30) + whole[at:]),
            lambda: post(noise(rng, 3000)),
            lambda: post(
                whole,
                rng.choice([b"multipart/form-data", b"multipart/form-data; boundary=", b"multipart/form-data; boundary=" + b"b" * 300]),
            ),
            lambda: post(
                whole, rng.choice([b"application/json", b"text/plain", b"application/x-www-form-urlencoded", b"", b"\xff", b"a/b; c"])
            ),
            lambda: post(form(small_png(), name=rng.choice([b"", b"fil", b"file[]", b"\xff", b"a" * 5000, b"__class__"]))),
            lambda: post(
                form(small_png(), filename=rng.choice([b"", b"../../x", b"\0", b"a" * 9000, b"\xff\xfe", b"x.exe", b'"; name="y']))
            ),
            lambda: post(form(small_png(), kind=rng.choice([b"text/html", b"", b"a" * 3000, b"image/svg+xml", b"\xff"]))),
            lambda: post(whole.removesuffix(b"--b--\r\n") * rng.randrange(2, 60) + b"--b--\r\n"),
            lambda: post(b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n' * rng.randrange(1, 3000) + b"--b--\r\n"),
            lambda: post(b"--b\r\n" + b"X: y\r\n" * rng.randrange(1, 4000) + b"\r\nabc\r\n--b--\r\n"),
            lambda: post(b"--b\r\nContent-Disposition: form-data" + b"; a=b" * rng.randrange(1, 3000) + b"\r\n\r\nabc\r\n--b--\r\n"),
            lambda: post(b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nno file\r\n--b--\r\n'),
            lambda: post(b'{"file": "' + noise(rng, 100) + b'"}', b"application/json"),
            lambda: post(whole).replace(b"Content-Length: ", b"Content-Length: 1"),
            lambda: post(whole, b"multipart/form-data; boundary=b", b"Content-Encoding: gzip", b"Origin: http://127.0.0.1"),
        ]
    )()


@cache
def small_png() -> bytes:
    held = io.BytesIO()
    Image.effect_noise((24, 20), 60).convert("RGB").save(held, "PNG")
    return held.getvalue()


@cache
def pictures() -> list[bytes]:
    """One small picture of every format that is read, and of some that are not."""
    image, found = Image.effect_noise((40, 32), 60).convert("RGB"), []
    options = {
        "GIF": {},
        "PNG": {},
        "JPEG": {},
        "WEBP": {},
        "BMP": {},
        "TIFF": {"compression": "tiff_lzw"},
        "PPM": {},
        "JPEG2000": {},
        "ICO": {},
        "AVIF": {},
    }
    options |= {"TGA": {}, "PCX": {}, "EPS": {}, "PDF": {}, "SGI": {}, "IM": {}, "DDS": {}}
    for name, given in options.items():
        held = io.BytesIO()
        try:
            image.save(held, name, **given)
        except (OSError, KeyError, ValueError):
            continue  # a Pillow without that format
        found.append(held.getvalue())
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"):
        held = io.BytesIO()
        image.convert("L").convert(mode if mode not in ("I;16", "LA") else "L").save(held, "TIFF")
        found.append(held.getvalue())
    return found


def broken_picture(rng: random.Random) -> bytes:
    data = rng.choice(pictures())
    at = rng.randrange(1, len(data))
    script = b"<html><script>alert(1)</script></html>"
    return post(
        form(
            rng.choice(
                [
                    lambda: data[:at],
                    lambda: data[:at] + noise(rng, 20) + data[at:],
                    lambda: bytes(b ^ (1 << rng.randrange(8)) if rng.random() < 0.01 else b for b in data),
                    lambda: data[:30] + bytes(rng.randrange(256) if rng.random() < 0.2 else b for b in data[30:]),
                    lambda: data[: min(at, 64)] + b"\xff" * rng.randrange(64) + data[at:],
                    lambda: data + script,
                    lambda: script + data,
                    lambda: b"GIF89a/*" + data + b"*/=1;alert(1)",
                    lambda: b"%PDF-1.4\n" + data,
                    lambda: data + b"PK\x03\x04" + noise(rng, 200),
                    lambda: b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><image href='file:///etc/passwd'/></svg>",
                    lambda: b"push graphic-context\nfill 'url(https://127.0.0.1/x.png\"|ls \"-la)'\npop graphic-context",
                    lambda: data * rng.randrange(2, 5),
                ]
            )()
        )
    )


def bomb(rng: random.Random) -> bytes:
    """Small in bytes, or by its header, and large in pixels, frames or metadata."""
    makers = [
        huge_header,
        huge_header,
        huge_header,
        zeros_png,
        zeros_png,
        zeros_tiff,
        text_png,
        many_frames,
        icon_of_png,
        tiff_loop,
        deep_png,
    ]
    return post(form(rng.choice(makers)(rng)))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, depth: int, colour: int, data: bytes, *more: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def huge_header(rng: random.Random) -> bytes:
    side = rng.choice([8000, 16384, 50_000, 65_535])
    many = rng.choice([side, 2**31 - 1, 2**32 - 1, 0])
    data = zlib.compress(b"\0" * 1000)
    gif = b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + b"\0" * 6
    return rng.choice(
        [
            lambda: png_of(many, side, 8, 6, data),
            lambda: png_of(many, many, 16, 6, data),
            lambda: gif + b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x02\x02\x4c\x01\0;",
            lambda: (
                gif[:6]
                + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0)
                + b"\0" * 6
                + b","
                + struct.pack("<HHHHB", 0, 0, side, side, 0)
                + b"\x02\x02\x4c\x01\0;"
            ),
            lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 1, 1, 0, 0) + b"\0" * 64,
            lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, side, -side, 1, 8, 1, 0, 1, 1, 0, 0) + b"\0\1" * 64,
            lambda: b"P6 %d %d 255\n" % (side, many) + b"\0" * 100,
            lambda: b"P5 %s 1 65535\n" % (b"9" * 300),
            lambda: b"II*\0\x08\0\0\0\x03\0" + struct.pack("<" + 3 * "HHII", 256, 4, 1, many, 257, 4, 1, side, 273, 4, 1, 8) + b"\0" * 4,
            lambda: (
                b"\xff\xd8\xff\xc0\0\x11\x08" + struct.pack(">HH", 65_535, 65_535) + b"\x03\x01\x22\0\x02\x11\x01\x03\x11\x01" + b"\0" * 100
            ),
            lambda: b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + b"\xff\xff\xff" * 2 + b"\0" * 8,
            lambda: (
                b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 \0\0\0\x2djp2h\0\0\0\x16ihdr"
                + struct.pack(">II", side, side)
                + b"\0\x03\x07\x07\0\0"
                + b"\0" * 40
            ),
        ]
    )()


@cache
def _zeros(count: int) -> bytes:
    return zlib.compress(bytes(count), 9)


def zeros_png(rng: random.Random) -> bytes:
    """Real pixels: below the limit they are decoded, above it refused."""
    width, height, depth, colour, each = rng.choice(
        [
            (4000, 4000, 1, 0, 1 / 8),
            (7000, 7000, 1, 0, 1 / 8),
            (7072, 7072, 1, 0, 1 / 8),
            (20_000, 20_000, 1, 0, 1 / 8),
            (5000, 5000, 8, 2, 3),
            (1, 3_000_000, 8, 0, 1),
        ]
    )
    return png_of(width, height, depth, colour, _zeros((int(-(-width * each // 1)) + 1) * height))


def zeros_tiff(rng: random.Random) -> bytes:
    side = rng.choice([3000, 6000, 12_000])
    return _tiff(side)


@cache
def _tiff(side: int) -> bytes:
    held = io.BytesIO()
    Image.new("1", (side, side)).save(held, "TIFF", compression="group4")
    return held.getvalue()


def text_png(rng: random.Random) -> bytes:
    size = rng.choice([10**5, 5 * 10**7])
    name = rng.choice([b"zTXt", b"iTXt", b"iCCP"])
    packed = _zeros(size)
    body = {b"zTXt": b"k\0\0" + packed, b"iTXt": b"k\0\1\0\0\0" + packed, b"iCCP": b"k\0\0" + packed}[name]
    return png_of(4, 4, 8, 0, zlib.compress(b"\0" * 20), *[chunk(name, body)] * rng.randrange(1, 20))


@cache
def _frames() -> bytes:
    held = io.BytesIO()
    frames = [Image.new("P", (8, 8), i % 255) for i in range(2000)]
    frames[0].save(held, "GIF", save_all=True, append_images=frames[1:])
    return held.getvalue()


def many_frames(rng: random.Random) -> bytes:
    return _frames()


def icon_of_png(rng: random.Random) -> bytes:
    inner = png_of(20_000, 17_000, 1, 0, _zeros((2500 + 1) * 17_000))
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def tiff_loop(rng: random.Random) -> bytes:
    """A directory that follows itself, and tags that point behind the end."""
    entries = (
        struct.pack("<HHII", 256, 4, 1, 10)
        + struct.pack("<HHII", 257, 4, 1, 10)
        + struct.pack("<HHII", 273, 4, rng.choice([1, 2**30]), 2**31)
    )
    return b"II*\0\x08\0\0\0\x03\0" + entries + struct.pack("<I", 8)


def deep_png(rng: random.Random) -> bytes:
    return png_of(5000, 5000, 16, rng.choice([0, 2, 6]), _zeros((5000 * 8 + 1) * 5000))
