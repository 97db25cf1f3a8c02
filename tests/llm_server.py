"""A server on this machine that answers as OpenRouter and as Gemini do, and misbehaves when it is told to.

In a test it runs in a thread of its own: `with LlmServer(reply=...) as server`. As a process of its own, for runs that
are killed and for benchmarks, with its counts at `GET /stats`:

    python tests/llm_server.py --latency 0.2 0.4 --limit 64 --port-file port.txt
"""

import argparse
import asyncio
import hashlib
import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from tests.llm_answers import GEMINI, OPENROUTER, Answer, Api, Asked, Fault, Raw, Reply, TooMany, default_reply

KEY = "sk-or-v1-" + 2 * "0123456789abcdef"  # of a key's form, so that what hides keys has one to find; opens nothing


class LlmServer:
    """Both APIs on a port of 127.0.0.1. `reply` decides what each request gets; `requests` holds them all.

    `latency` in seconds, one number or the ends of a range; more than `limit` at once get 429, with `retry_after`
    where it is given. `max_concurrent` counts what was let in.
    """

    def __init__(
        self,
        reply: Callable[[Asked], Answer] = default_reply,
        latency: float | tuple[float, float] = 0.0,
        limit: int | None = None,
        retry_after: float | None = None,
        seed: int = 0,
    ) -> None:
        self.reply, self.limit, self.retry_after = reply, limit, retry_after
        self.latency = latency if isinstance(latency, tuple) else (latency, latency)
        self.requests: list[Asked] = []
        self.counts: Counter[str] = Counter()  # by key of the body, refused ones included
        self.in_flight = self.max_concurrent = self.refused = self.answered = 0
        self.port = 0
        self._random = random.Random(seed)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    @property
    def openrouter_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def gemini_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stats(self) -> dict[str, Any]:
        return {
            "total": len(self.requests),
            "answered": self.answered,
            "refused": self.refused,
            "max_concurrent": self.max_concurrent,
            "bodies": self.counts,
        }

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60), "the server did not start"
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)

    def settle(self) -> None:
        """Return once it has seen all that was sent: what a client asked just before it ended is asked, too."""

        async def take_turns() -> None:
            for _ in range(20):  # accept, read, parse and handle are a turn of the loop each
                await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(take_turns(), self._loop).result(60)

    async def _run(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        async with self.serving():
            self._ready.set()
            await self._stopped.wait()

    @asynccontextmanager
    async def serving(self, port: int = 0):
        """Serve in the running loop; `port` is known inside."""
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self._openrouter)
        app.router.add_post("/{version:v1|v1beta}/models/{model}:generateContent", self._gemini)
        app.router.add_get("/stats", self._stats)
        # what a killed client asked for is cancelled, as behind a real gateway
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.05)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port, backlog=2048).start()
            self.port = runner.addresses[0][1]
            yield self
        finally:
            await runner.cleanup()

    async def _stats(self, request: web.Request) -> web.Response:
        return web.json_response(self.stats())

    async def _openrouter(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw)
        texts = {message["role"]: message["content"] for message in body["messages"]}
        top = body.get("top_logprobs", 0) if body.get("logprobs") else 0
        return await self._answer(request, OPENROUTER, raw, body, texts.get("system", ""), texts["user"], top)

    async def _gemini(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw)
        system = "".join(part["text"] for part in body.get("systemInstruction", {}).get("parts", ()))
        user = "".join(part["text"] for content in body["contents"] for part in content["parts"])
        config = body.get("generationConfig", {})
        top = config.get("logprobs", 0) if config.get("responseLogprobs") else 0
        return await self._answer(request, GEMINI, raw, body, system, user, top)

    async def _answer(
        self, request: web.Request, api: Api, raw: bytes, body: dict[str, Any], system: str, user: str, top: int
    ) -> web.StreamResponse:
        key = hashlib.sha256(raw).hexdigest()[:16]
        self.counts[key] += 1
        at, times = time.monotonic(), self.counts[key]
        asked = Asked(api.name, system, user, top, body, dict(request.headers), key, times, at)
        self.requests.append(asked)
        if self.limit is not None and self.in_flight >= self.limit:
            self.refused += 1
            return too_many(api, TooMany(self.retry_after))
        self.in_flight += 1
        self.max_concurrent = max(self.max_concurrent, self.in_flight)
        try:
            answer = self.reply(asked)
            if self.latency[1] > 0:
                await asyncio.sleep(self._random.uniform(*self.latency))
            response = await respond(request, api, asked, answer)
            self.answered += 1
            return response
        finally:
            self.in_flight -= 1


async def respond(request: web.Request, api: Api, asked: Asked, answer: Answer) -> web.StreamResponse:
    match answer:
        case Reply():
            return web.json_response(api.body(answer, asked))
        case TooMany():
            return too_many(api, answer)
        case Raw(status, body):
            return web.Response(status=status, text=body, content_type="application/json")
        case Fault.SERVER_ERROR:
            return web.json_response(api.error(500, "Internal server error", ()), status=500)
        case Fault.HANG:
            await asyncio.Event().wait()
        case Fault.DROPPED | Fault.CUT:
            assert request.transport is not None
            half = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
            if answer is Fault.CUT:
                await half.prepare(request)
                await half.write(b'{"choices": [{"message": ')
            request.transport.close()
            return half
        case Fault.WRONG_KEY:
            return web.json_response(api.error(401, f"No such user; headers {dict(asked.headers)}", ()), status=401)
        case Fault.NOT_JSON:
            return web.Response(text="<html>Bad gateway</html>", content_type="text/html")
        case Fault.NOT_QUITE_JSON:
            whole = json.dumps(api.body(default_reply(asked), asked))
            return web.Response(text=whole[: len(whole) // 2], content_type="application/json")
        case Fault.NO_LOGPROBS:
            if asked.top_logprobs:
                return web.json_response(api.error(400, "logprobs is not supported by this model", ()), status=400)
            return web.json_response(api.body(default_reply(asked), asked))
    return web.json_response(api.faults[answer])


def too_many(api: Api, refusal: TooMany) -> web.Response:
    details: Sequence[Any] = ()
    headers = {}
    if refusal.retry_after is not None and refusal.is_in_body:
        details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{refusal.retry_after:g}s"}]
    elif refusal.retry_after is not None:
        headers["Retry-After"] = f"{refusal.retry_after:g}"
    return web.json_response(api.error(429, "Rate limit exceeded", details), status=429, headers=headers)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, nargs="+", default=[0.0], help="seconds, or two ends of a range")
    parser.add_argument("--limit", type=int, help="requests at once; 429 beyond")
    parser.add_argument("--retry-after", type=float, help="seconds, in the header of each 429")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--port-file", type=Path, help="where the port is written once the server listens")
    options = parser.parse_args(arguments)
    latency = (options.latency[0], options.latency[-1])
    asyncio.run(run(LlmServer(default_reply, latency, options.limit, options.retry_after, options.seed), options))


async def run(server: LlmServer, options: argparse.Namespace) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with server.serving(options.port):
        print(f"{server.openrouter_url} {server.gemini_url}", flush=True)
        if options.port_file:
            new = options.port_file.with_name(options.port_file.name + ".new")
            new.write_text(str(server.port))
            new.rename(options.port_file)
        await stopped.wait()


if __name__ == "__main__":
    main()
