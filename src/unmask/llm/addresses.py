"""Names of models behind APIs, as users know them: `openrouter/deepseek/deepseek-chat-v3.1`, `http://localhost:8000/v1 model`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from unmask.errors import ConfigError, listed

SERVER_KEY = "UNMASK_SERVER_KEY"
"""The variable that holds the key of a server given by its URL, where it wants one."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Provider:
    """Where a provider answers, and which variable holds its key.

    Sources: openrouter.ai/docs/api-reference/overview, ai.google.dev/gemini-api/docs/openai,
    platform.openai.com/docs/api-reference.
    """

    base_url: str
    key_variable: str


PROVIDERS = {
    "openrouter": Provider("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "gemini": Provider("https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"),
    "openai": Provider("https://api.openai.com/v1", "OPENAI_API_KEY"),
}


@dataclass(frozen=True, slots=True)
class ModelAddress:
    """One model at one endpoint. The key is never printed and takes no part in comparisons."""

    name: str
    base_url: str
    model: str
    key: str | None = field(default=None, repr=False, compare=False)

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, where asking costs nothing."""
        return urlsplit(self.base_url).hostname in LOOPBACK


def find_model(name: str) -> ModelAddress:
    """Read a model's name; a provider's key comes from the environment, a server's from UNMASK_SERVER_KEY.

    Raises ConfigError for a name of no known form, and where the provider's key is not set.
    """
    if name.startswith(("http://", "https://")):
        base_url, _, model = name.partition(" ")
        try:
            parts = urlsplit(base_url)
            _ = parts.port
        except ValueError as error:
            raise ConfigError(f"{base_url!r} is no URL ({error})", mend="Write http://HOST:PORT/v1 MODEL") from error
        if not model.strip() or not parts.hostname or parts.username or parts.password or parts.query:
            raise ConfigError(
                "a model's URL has no host or no model behind it, or holds a password or a query",
                mend="Write the URL, a space and the model's name: 'http://localhost:8000/v1 my-model'",
            )
        key = _key_in(SERVER_KEY)
        if key and parts.scheme == "http" and parts.hostname not in LOOPBACK:
            raise ConfigError(
                f"{SERVER_KEY} is set, and {parts.hostname} would get it unencrypted",
                mend=f"Use https, a tunnel to localhost, or unset {SERVER_KEY}",
            )
        return ModelAddress(name, base_url.rstrip("/"), model.strip(), key)
    provider, _, model = name.partition("/")
    if provider not in PROVIDERS or not model:
        raise ConfigError(
            f"model {name!r} is at no known provider",
            mend=f"Write PROVIDER/MODEL with one of {listed(PROVIDERS)}, or 'http://HOST:PORT/v1 MODEL' (a judge: hf/MODEL too)",
        )
    found = PROVIDERS[provider]
    key = _key_in(found.key_variable)
    if key is None:
        raise ConfigError(
            f"{name} needs a key, and {found.key_variable} is not set",
            mend=f"Set {found.key_variable} in the environment or in .env; the offline judge and local servers need none",
        )
    return ModelAddress(name, found.base_url, model, key)


def _key_in(variable: str) -> str | None:
    """The key that a variable holds. Raises ConfigError for one that no key is made of, without showing it."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{variable} holds characters that no key has", mend="Copy the key anew, without quotes")
    return key or None
