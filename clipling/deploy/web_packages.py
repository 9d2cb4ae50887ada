"""What the web folder needs from npm: fetched by the user's own npm in pinned versions, checked, and taken apart safely.

Nothing of these packages is part of clipling.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from clipling.errors import UserError
from clipling.store import atomic_produce, cache_dir

LARGEST = 64 * 2**20  # bytes of one file out of a package
PATIENCE = 600  # seconds for npm


@dataclass(frozen=True)
class Package:
    """integrity: of the packed file, as npm writes it. files: what is taken, with the sha256 of each."""

    name: str
    version: str
    integrity: str
    files: dict[str, str]

    @property
    def packed(self) -> str:
        """The name that `npm pack` gives."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


ONNXRUNTIME = Package(
    "onnxruntime-web",
    "1.30.0",
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    {
        # The build with the wasm backend alone; `bundle` holds the loader of the .wasm, which is the one other file it needs.
        "dist/ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
        "dist/ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    },
)
TOKENIZERS = Package(
    "@huggingface/tokenizers",
    "0.2.0",
    "sha512-LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
    {
        "dist/tokenizers.min.mjs": "258e46332101335ce8d95aed7745b19ac3b46d37f3e159a89cf894c2ea9b1d3a",
        "LICENSE": "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
    },
)


def contents(package: Package, runtime: Path | None = None) -> dict[str, bytes]:
    """The files of a package by their names in it, each checked.

    runtime: a folder with the packages, as `npm install` (unpacked) or `npm pack` (packed) leaves them; None asks npm and keeps
    the packed file in the cache. UserError where it is not to be had, or is not what was published.
    """
    if runtime is None:
        found = unpack(_cached(package), package)
    else:
        found = _given(package, runtime)
    for name, data in found.items():
        if hashlib.sha256(data).hexdigest() != package.files[name]:
            raise UserError(f"{name} of {package.name} differs from the one in version {package.version}. Fetch that version again")
    return found


def check_integrity(path: Path, package: Package) -> None:
    """UserError unless the packed file is the one that was published."""
    kind, _, expected = package.integrity.partition("-")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, kind).digest()
    if base64.b64encode(digest).decode() != expected:
        raise UserError(
            f"{path} is not {package.name} {package.version}: its {kind} differs from the published one. Delete it and try again"
        )


def unpack(path: Path, package: Package) -> dict[str, bytes]:
    """The wanted files out of the packed file. Nothing is written: names in the archive cannot lead anywhere.

    UserError where the packed file is not the published one, or lacks a file or holds a link in its place, or one above 64 MiB.
    """
    check_integrity(path, package)
    found = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                name = member.name.removeprefix("package/")
                if name == member.name or name not in package.files:
                    continue
                if not member.isreg() or member.size > LARGEST or name in found:
                    raise UserError(f"{path} holds {member.name} as no plain file, twice, or above {LARGEST >> 20} MiB")
                found[name] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}. Delete it and try again") from error
    _complete(found, package, path)
    return found


def _complete(found: dict[str, bytes], package: Package, where: Path) -> None:
    missing = sorted(package.files.keys() - found.keys())
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)} of {package.name} {package.version}")


def _given(package: Package, runtime: Path) -> dict[str, bytes]:
    folders = (runtime / "node_modules" / package.name, runtime / package.name)
    unpacked = next((folder for folder in folders if folder.is_dir()), None)
    if unpacked is not None:
        found = {name: (unpacked / name).read_bytes() for name in package.files if (unpacked / name).is_file()}
        _complete(found, package, unpacked)
        return found
    if (runtime / package.packed).is_file():
        return unpack(runtime / package.packed, package)
    raise UserError(
        f"{runtime} holds neither a folder {package.name}, unpacked, nor {package.packed}. "
        f"Run `npm pack {package.name}@{package.version}` in it, or leave --web-runtime out"
    )


def _cached(package: Package) -> Path:
    path = cache_dir() / "web" / package.packed
    if not path.is_file():
        atomic_produce(path, lambda temporary: _pack(package, temporary))
    return path


def _pack(package: Package, target: Path) -> None:
    npm = shutil.which("npm")
    wanted = f"{package.name}@{package.version}"
    if npm is None:
        raise UserError(
            f"npm is not installed; --to web fetches {wanted} with it. Install Node.js, or run `npm pack {wanted}` on another machine "
            "and name the folder with the file by --web-runtime"
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", wanted, "--ignore-scripts", "--silent", "--pack-destination", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=folder)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"npm did not fetch {wanted} in {PATIENCE // 60} minutes. Is there a network?") from error
        packed = Path(folder) / package.packed
        if done.returncode or not packed.is_file():
            raise UserError(f"npm could not fetch {wanted}: {done.stderr.strip()[-500:] or 'no message'}. Is there a network?")
        check_integrity(packed, package)
        shutil.copyfile(packed, target)
