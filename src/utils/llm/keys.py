"""Which environment variables hold a provider's key and address."""

from collections.abc import Mapping

from src.utils.errors import UserError

KEYS = {"openrouter": ("OPENROUTER_API_KEY",), "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY")}
URLS = {"openrouter": "OPENROUTER_BASE_URL", "gemini": "GOOGLE_GEMINI_BASE_URL"}  # for servers that speak the same API


def key_of(provider: str, environment: Mapping[str, str]) -> str | None:
    """The provider's key, None where no variable of its holds one; `UserError` where it could be no key."""
    for name in KEYS[provider]:
        if key := environment.get(name, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise UserError(f"{name}: holds a line break or a character beyond ASCII; copy the key into .env again")
            return key
    return None


def find_key(provider: str, environment: Mapping[str, str]) -> str:
    """The provider's key from the environment; `UserError` names the variable and .env."""
    if key := key_of(provider, environment):
        return key
    raise UserError(f"{KEYS[provider][0]} is not set; put it into .env (see .env.example), or choose another provider")
