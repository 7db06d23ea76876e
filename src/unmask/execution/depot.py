"""Files on their way between machines that share no path: at any URL that fsspec knows, each named by its checksum.

Credentials are found as the protocol's own tools find them, on each machine for itself: in the environment or their config, never
in a URL. A file that is there already is sent no second time.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.artifact import atomic_path, digest_file
from unmask.errors import ConfigError, StudyError
from unmask.store.remote_folder import without_secrets

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


@dataclass(frozen=True, slots=True)
class Depot:
    """A folder of an fsspec file system; `url` is what messages call it."""

    system: AbstractFileSystem
    path: str
    url: str

    @classmethod
    def at(cls, url: str) -> Depot:
        """Raises ConfigError for a URL whose protocol is not known or not installed."""
        from fsspec.core import url_to_fs

        shown = without_secrets(url)
        try:
            system, path = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"--store {shown} cannot be opened ({error})", mend="Name an URL that fsspec knows: s3://BUCKET/FOLDER"
            ) from error
        return cls(system, str(path).rstrip("/"), shown)

    def send(self, files: Mapping[str, Path]) -> dict[str, str]:
        """Put files there, by the names that a receiver gives them. Returns their checksums. Raises StudyError."""
        digests = {name: digest_file(path) for name, path in files.items()}
        try:
            self.system.makedirs(f"{self.path}/files", exist_ok=True)
            for name, path in files.items():
                self._put(path, f"{self.path}/{self.place_of(digests[name])}")
        except Exception as error:
            raise self._unusable(error) from error
        return digests

    def _put(self, path: Path, place: str) -> None:
        if self.system.exists(place):
            return
        beside = f"{place}.{uuid.uuid4().hex}"  # a file system shows half a file; an object store does not, and renames dearly
        whole = "file" in self.system.protocol
        self.system.put_file(str(path), beside if whole else place)
        if whole:
            self.system.mv(beside, place)

    def fetch(self, digest: str, target: Path) -> None:
        """Bring a file. Raises StudyError where it is missing, or does not have that checksum."""
        with atomic_path(target) as temporary:
            try:
                self.system.get_file(f"{self.path}/{self.place_of(digest)}", str(temporary))
            except Exception as error:
                raise self._unusable(error) from error
            if digest_file(temporary) != digest:
                raise StudyError(
                    f"a file in {self.url} does not match its checksum ({digest[:12]})", mend=f"Empty {self.url}"
                )

    def place_of(self, digest: str) -> str:
        """Where the file with that checksum lies, from the depot's folder on."""
        return f"files/{digest}"

    def drop(self, places: Iterable[str]) -> None:
        """Remove records and files that nobody waits for any more; what is gone already is no matter."""
        for place in places:
            try:
                self.system.rm_file(f"{self.path}/{place}")
            except Exception:  # only room is lost
                continue

    def note(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a record, after all that it lists. Raises StudyError."""
        try:
            self.system.makedirs(f"{self.path}/{name}".rpartition("/")[0], exist_ok=True)
            self.system.pipe_file(f"{self.path}/{name}", json.dumps(dict(content), sort_keys=True).encode())
        except Exception as error:
            raise self._unusable(error) from error

    def noted(self, name: str) -> dict[str, Any] | None:
        """A record; None where there is none."""
        try:
            self.system.invalidate_cache()
            found = json.loads(self.system.cat_file(f"{self.path}/{name}"))
        except FileNotFoundError:
            return None
        except ValueError:  # half a record, of a writer that was killed: as good as none
            return None
        except Exception as error:
            raise self._unusable(error) from error
        return found if isinstance(found, dict) else None

    def _unusable(self, error: Exception) -> StudyError:
        reason = "something is missing there" if isinstance(error, FileNotFoundError) else type(error).__name__
        return StudyError(
            f"the store {self.url} cannot be used ({reason})",
            mend="Check that every machine may read and write there, and run the same command again",
        )
