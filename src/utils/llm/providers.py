"""The two providers, through their own clients: OpenRouter (and anything that speaks its API) and Gemini.

Retries and waiting are left to `asking`; the clients' own are switched off, so that every refusal is seen.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from google import genai
from google.genai import errors as gemini_errors
from google.genai import types
from openai import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    APIStatusError,
    AsyncOpenAI,
    DefaultAioHttpClient,
)
from openai.types.chat import ChatCompletion

from src.utils.llm.api import (
    ChatClient,
    ChatReply,
    ChatRequest,
    RateLimited,
    Redactor,
    Rejected,
    TokenChoice,
    Unavailable,
    Unusable,
    header,
)

OPENROUTER_URL = "https://openrouter.ai/api/v1"
UNUSABLE = {401: "the key is not accepted", 402: "there is no credit", 404: "not found"}  # 403: moderated, perhaps
MAY_PASS = {408, 409, 425}  # beside 5xx
RETRY_HEADERS = ("retry-after", "Retry-After")
# Tokens of thought, as few as the model allows: a scale from 0 to 100 needs none, and they come before the reply.
LEAST_THINKING = {"2.5-flash": 0, "2.5-pro": 128}
NO_LOGPROBS = re.compile(r"log_?probs?|response_?logprobs", re.IGNORECASE)


class OpenRouterClient:
    """A model behind OpenRouter, or behind any server with OpenAI's chat completions at `base_url`."""

    def __init__(self, model: str, key: str, base_url: str | None, timeout: float) -> None:
        """`timeout` in seconds for one request."""
        self.model = model
        self.redact = Redactor((key,))
        self.gives_logprobs = True
        self.client = AsyncOpenAI(
            api_key=key,
            base_url=base_url or OPENROUTER_URL,
            timeout=timeout,
            max_retries=0,
            http_client=DefaultAioHttpClient(),
        )
        self.timeout = timeout

    async def ask(self, request: ChatRequest) -> ChatReply:
        with_logprobs = self.gives_logprobs and request.top_logprobs > 0
        try:
            async with asyncio.timeout(self.timeout):
                # as `chat.completions.create` does, but it first spends a quarter of the client's time on turning
                # the body into itself
                completion = await self.client.post(
                    "/chat/completions", body=self._parameters(request, with_logprobs), cast_to=ChatCompletion
                )
        except TimeoutError:
            raise Unavailable(f"no reply within {self.timeout:g} s") from None
        except APIStatusError as error:
            if with_logprobs and error.status_code == 400 and NO_LOGPROBS.search(f"{error.message} {error.body}"):
                self.gives_logprobs = False
                return await self.ask(request)
            raise fault(
                error.status_code, self.redact.line(error.message), retry_after(error.response.headers)
            ) from None
        except APIConnectionError as error:
            raise Unavailable(self.redact.line(error.__cause__ or error.message)) from None
        except (APIError, APIResponseValidationError, ValueError) as error:  # a body that is no JSON, or no completion
            raise Unavailable(self.redact.line(error)) from None
        try:
            return self._reply(completion)
        except (AttributeError, TypeError, ValueError):
            raise Unavailable("the reply is no chat completion") from None

    async def close(self) -> None:
        await self.client.close()

    def _parameters(self, request: ChatRequest, with_logprobs: bool) -> dict[str, Any]:
        parameters: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "usage": {"include": True},
        }
        if with_logprobs:
            parameters |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        if request.schema is not None:
            schema = {"name": request.schema.__name__, "strict": True, "schema": strict_schema(request.schema)}
            parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
        return parameters

    def _reply(self, completion: ChatCompletion) -> ChatReply:
        """OpenRouter may answer HTTP 200 with an `error` and no choices; an error of a code means what it says."""
        extra = getattr(completion, "model_extra", None) or {}
        usage = getattr(completion, "usage", None)
        cost = (usage.model_extra or {}).get("cost") if usage else None
        cost = float(cost) if isinstance(cost, int | float) else None
        problem = extra.get("error")
        if isinstance(problem, Mapping):
            code = problem.get("code")
            raise fault(
                code if isinstance(code, int) else 500, self.redact.line(problem.get("message") or problem), None
            )
        choices = getattr(completion, "choices", None)
        if not choices:
            raise Unavailable("the reply holds no choice")
        choice = choices[0]
        finish = str(choice.finish_reason or "unknown").lower()
        blank = ChatReply(
            text="",
            finish=finish,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            cost=cost,
        )
        used = blank if usage else None
        if choice.message.refusal:
            raise Rejected(f"refused: {self.redact.line(choice.message.refusal)}", True, used)
        if finish == "content_filter":
            raise Rejected("blocked by the provider's content filter", True, used)
        if finish == "error":
            raise Unavailable("the provider's model failed")
        if not isinstance(text := choice.message.content or "", str):
            raise TypeError("a text is a string")
        positions = (choice.logprobs.content or []) if choice.logprobs else []
        tokens = (
            TokenChoice(
                token=position.token,
                alternatives=known(
                    (place.token, place.logprob) for place in (position, *(position.top_logprobs or ()))
                ),
            )
            for position in positions
        )
        return blank.model_copy(update={"text": self.redact(text), "tokens": beginning(tokens, self.redact)})


class GeminiClient:
    """A Gemini model through google-genai."""

    def __init__(self, model: str, key: str, base_url: str | None, timeout: float) -> None:
        """`timeout` in seconds for one request; `base_url` None means Google's."""
        self.model = model
        self.redact = Redactor((key,))
        self.gives_logprobs = True
        self.timeout = timeout
        options = types.HttpOptions(
            base_url=base_url,
            timeout=int(timeout * 1000),
            retry_options=types.HttpRetryOptions(attempts=1),  # without it a cut connection is retried behind our back
        )
        self.client = genai.Client(api_key=key, vertexai=False, http_options=options)

    async def ask(self, request: ChatRequest) -> ChatReply:
        with_logprobs = self.gives_logprobs and request.top_logprobs > 0
        try:
            async with asyncio.timeout(self.timeout):
                response = await self.client.aio.models.generate_content(
                    model=self.model, contents=request.user, config=self._config(request, with_logprobs)
                )
        except TimeoutError:
            raise Unavailable(f"no reply within {self.timeout:g} s") from None
        except gemini_errors.APIError as error:
            if with_logprobs and error.code == 400 and NO_LOGPROBS.search(f"{error.message} {error.details}"):
                self.gives_logprobs = False
                return await self.ask(request)
            reason = self.redact.line(error.message or error.details)
            if error.code == 400 and "api key" in reason.lower():  # Google's word for a wrong key
                raise Unusable(reason) from None
            headers = getattr(error.response, "headers", None)
            raise fault(error.code, reason, retry_after(headers) or retry_delay(error.details)) from None
        except gemini_errors.UnknownApiResponseError as error:
            raise Unavailable(self.redact.line(error)) from None
        except Exception as error:  # aiohttp or httpx, whichever it runs on: a cut connection, no JSON
            raise Unavailable(self.redact.line(f"{type(error).__name__}: {error}")) from None
        return self._reply(response)

    async def close(self) -> None:
        await self.client.aio.aclose()

    def _config(self, request: ChatRequest, with_logprobs: bool) -> types.GenerateContentConfig:
        thinking = least_thinking(self.model)
        return types.GenerateContentConfig(
            system_instruction=request.system,
            temperature=request.temperature,
            max_output_tokens=request.max_tokens + (thinking or 0),  # thoughts count among them
            response_logprobs=True if with_logprobs else None,
            logprobs=request.top_logprobs if with_logprobs else None,
            response_mime_type="application/json" if request.schema else None,
            response_json_schema=strict_schema(request.schema) if request.schema else None,
            thinking_config=None if thinking is None else types.ThinkingConfig(thinking_budget=thinking),
        )

    def _reply(self, response: types.GenerateContentResponse) -> ChatReply:
        usage = response.usage_metadata
        blank = ChatReply(
            text="",
            finish="unknown",
            prompt_tokens=(usage.prompt_token_count or 0) if usage else 0,
            completion_tokens=((usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0)) if usage else 0,
        )
        used = blank if usage else None
        if not response.candidates:
            feedback = response.prompt_feedback
            if feedback and feedback.block_reason:
                raise Rejected(f"prompt blocked ({named(feedback.block_reason)})", True, used)
            raise Unavailable("the reply holds no candidate")
        candidate = response.candidates[0]
        finish = named(candidate.finish_reason) if candidate.finish_reason else "unknown"
        parts = (candidate.content.parts if candidate.content else None) or []
        text = "".join(part.text or "" for part in parts if not part.thought)
        if finish not in ("stop", "max_tokens", "unknown"):
            raise Rejected(f"blocked ({finish})", True, used)
        tokens = beginning(gemini_tokens(candidate.logprobs_result), self.redact)
        return blank.model_copy(update={"text": self.redact(text), "finish": finish, "tokens": tokens})


def least_thinking(model: str) -> int | None:
    """Tokens of thought that a Gemini model is allowed, None where it is not told."""
    return next((budget for name, budget in LEAST_THINKING.items() if name in model), None)


def gemini_tokens(result: types.LogprobsResult | None) -> tuple[TokenChoice, ...]:
    """The chosen token and its alternatives, place by place; nothing where the model gave none."""
    if result is None or not result.chosen_candidates:
        return ()
    tops = result.top_candidates or [None] * len(result.chosen_candidates)
    choices = []
    for chosen, top in zip(result.chosen_candidates, tops, strict=False):
        candidates = [chosen, *((top.candidates if top else None) or [])]
        alternatives = known((candidate.token, candidate.log_probability) for candidate in candidates)
        choices.append(TokenChoice(token=chosen.token or "", alternatives=alternatives))
    return tuple(choices)


def known(alternatives: Iterable[tuple[str | None, float | None]]) -> dict[str, float]:
    """The alternatives that have a token and a finite log-probability."""
    return {token: logprob for token, logprob in alternatives if token and logprob is not None and isfinite(logprob)}


def beginning(tokens: Iterable[TokenChoice], redact: Redactor) -> tuple[TokenChoice, ...]:
    """The tokens up to the first that is no blank: what a score of one token is read from."""
    kept = []
    for choice in tokens:
        alternatives = {redact(token): logprob for token, logprob in choice.alternatives.items()}
        kept.append(TokenChoice(token=redact(choice.token), alternatives=alternatives))
        if choice.token.strip():
            break
    return tuple(kept)


def make_client(provider: str, model: str, key: str, base_url: str | None, timeout: float) -> ChatClient:
    """The client of a provider: `openrouter` or `gemini`."""
    kinds = {"openrouter": OpenRouterClient, "gemini": GeminiClient}
    return kinds[provider](model, key, base_url, timeout)


def fault(status: int | None, reason: str, wait: float | None) -> Exception:
    """The exception that an HTTP status means."""
    if status == 429:
        return RateLimited(f"429: {reason}", wait)
    if status in UNUSABLE:
        return Unusable(f"{status}, {UNUSABLE[status]}: {reason}")
    if status is None or status >= 500 or status in MAY_PASS:
        return Unavailable(f"{status}: {reason}")
    return Rejected(f"{status}: {reason}")


def retry_after(headers: Mapping[str, str] | None) -> float | None:
    """Seconds of a Retry-After header; a date or anything else counts as none said."""
    value = header(headers, RETRY_HEADERS)
    try:
        seconds = float(value) if value is not None else None
    except ValueError:
        return None
    return seconds if seconds is not None and 0 <= seconds < 3600 else None


def retry_delay(details: object) -> float | None:
    """Seconds of Google's `RetryInfo.retryDelay` ("31s") in an error body."""
    found = re.search(r"retryDelay'?\"?: *'?\"?(\d+(?:\.\d+)?)s", str(details))
    return float(found[1]) if found else None


def named(value: object) -> str:
    """An enum of google-genai as a lower-case word."""
    return str(getattr(value, "value", value)).lower()


def strict_schema(schema: Any) -> dict[str, Any]:
    """A pydantic model as the JSON schema that both providers take: references written out, all required, no extras."""
    full = schema.model_json_schema()
    definitions = full.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return resolve(definitions[node["$ref"].rsplit("/", 1)[-1]])
        resolved = {key: resolve(value) for key, value in node.items() if key not in ("title", "default", "properties")}
        if node.get("type") == "object":
            properties = {name: resolve(value) for name, value in node.get("properties", {}).items()}
            resolved |= {"properties": properties, "additionalProperties": False, "required": list(properties)}
        return resolved

    return resolve(full)
