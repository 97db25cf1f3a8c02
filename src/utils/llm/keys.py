"""Which environment variables hold a provider's key and address."""

from collections.abc import Mapping

from src.utils.errors import UserError

KEYS = {"openrouter": ("OPENROUTER_API_KEY",), "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY")}
URLS = {"openrouter": "OPENROUTER_BASE_URL", "gemini": "GOOGLE_GEMINI_BASE_URL"}  # for servers that speak the same API


def find_key(provider: str, environment: Mapping[str, str]) -> str:
    """The provider's key from the environment; `UserError` names the variable and .env."""
    for name in KEYS[provider]:
        if environment.get(name, "").strip():
            return environment[name].strip()
    raise UserError(f"{KEYS[provider][0]} is not set; put it into .env (see .env.example), or choose another provider")
