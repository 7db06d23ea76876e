"""This installation as files to send: the package as a wheel, the part that runs on a host, and the versions it needs.

The same installation gives the same bytes, so that a host that has them is sent nothing.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from unmask.errors import UnmaskError

PACKAGE = "unmask"
RUN_EXTRAS = ("train", "demo", "umap")
"""Extras that a run can use, taken along where they are installed here; the others are for developers and this side."""
_LONG_AGO = (1980, 1, 1, 0, 0, 0)


def package_files() -> dict[str, bytes]:
    """Every file of the running package, by its path in a wheel. Works for editable installations too."""
    folder = Path(__file__).parents[1]
    return {
        f"{PACKAGE}/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


def wheel() -> tuple[str, bytes]:
    """Name and content of a wheel of the running package, which pip accepts. Raises UnmaskError where it is not installed."""
    try:
        installed = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise UnmaskError(
            f"{PACKAGE} runs without being installed", mend="pip install it, with -e if you like"
        ) from error
    folder = f"{PACKAGE}-{installed.version}.dist-info"
    files = package_files()
    files[f"{folder}/METADATA"] = (installed.read_text("METADATA") or "").encode()
    files[f"{folder}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: unmask\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{folder}/entry_points.txt"] = (installed.read_text("entry_points.txt") or "").encode()
    record = f"{folder}/RECORD"
    rows = [f"{name},sha256={_urlsafe(data)},{len(data)}" for name, data in files.items()]
    files[record] = "".join(f"{row}\n" for row in [*rows, f"{record},,"]).encode()
    return f"{PACKAGE}-{installed.version}-py3-none-any.whl", _zip(files)


def host_program() -> bytes:
    """What runs on the host (`execution/on_host`) as one file that Python starts."""
    folder = Path(__file__).parent / "on_host"
    files = {f"unmask/execution/on_host/{path.name}": path.read_bytes() for path in sorted(folder.glob("*.py"))}
    files |= {"unmask/__init__.py": b"", "unmask/execution/__init__.py": b""}
    files["__main__.py"] = b"from unmask.execution.on_host.__main__ import main\nmain()\n"
    return _zip(files)


def _zip(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compresslevel=9) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return buffer.getvalue()


def _urlsafe(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def pins() -> list[str]:
    """`name==version` of all that the package needs, as installed here, sorted.

    A version's local label is left out: where torch is built for the CPU here (`2.13.0+cpu`), a host with a GPU gets the build
    for CUDA. What only this system needs is told by markers, and stays away; what only the host needs, its installer adds.
    """
    found: dict[str, str] = {}
    extras = tuple(extra for extra in RUN_EXTRAS if _has_extra(extra))
    _gather(PACKAGE, extras, found, set())
    found.pop(PACKAGE)
    return sorted(f"{name}=={version}" for name, version in found.items())


def _gather(name: str, extras: tuple[str, ...], found: dict[str, str], seen: set[tuple[str, tuple[str, ...]]]) -> None:
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    try:
        installed = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return
    found[name] = installed.version.partition("+")[0]
    for other, its_extras in _requirements(installed, extras):
        _gather(other, its_extras, found, seen)


def _requirements(installed: metadata.Distribution, extras: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    for text in installed.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield canonicalize_name(requirement.name), tuple(sorted(requirement.extras))


def _has_extra(extra: str) -> bool:
    """Whether all that an extra names is installed here."""
    wanted = re.compile(rf"extra\s*==\s*['\"]{extra}['\"]")
    for text in metadata.distribution(PACKAGE).requires or ():
        if wanted.search(text):
            name = re.split(r"[\s\[<>=!~;(]", text, maxsplit=1)[0]
            try:
                metadata.distribution(name)
            except metadata.PackageNotFoundError:
                return False
    return True
