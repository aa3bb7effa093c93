"""A vLLM server asked from one process: few requests are streamed and timed, the others answer once at their end.

A streamed token costs server and client a message, which is no part of generation for training; so is parsing answers
and writing requests, done before and after the clock runs.
"""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from grpo_lab.config.schema import Config
from grpo_lab.planner.bench import BenchPlan
from grpo_lab.planner.loads import Load, Request
from grpo_lab.server.counters import Counts, read_counts
from grpo_lab.server.key import bearer
from grpo_lab.store.rounds import Arrivals, BenchFailed, Measured

SETTLE_S = 5.0
"""How long the server's counters may lag behind its answers."""
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""All that a model's generation_config.json could change; TRL's defaults."""


class ServerFailed(RuntimeError):
    """The server broke off, or says that it is broken."""

    of_server = True


@dataclass
class Answer:
    sent: float
    usage: dict[str, int] | None = None
    body: bytes = b""
    """Of an answer that was not streamed."""
    came: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    """Completion -> moment and number of tokens of each message."""
    totals: dict[int, int] = field(default_factory=dict)
    """Completion -> tokens so far."""


class Client:
    """Generator (grpo_lab.store.rounds) on a server's completions endpoint."""

    tells = True

    def __init__(self, url: str) -> None:
        self.url = url
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection for each request in flight
        self.model = json.loads(self._fetch("GET", "/v1/models"))["data"][0]["id"]
        self.kv_cache_tokens = self._counts().kv_cache_tokens or None

    def measure(self, requests: Sequence[Request], load: Load) -> Measured:
        self._fetch("POST", "/reset_prefix_cache")
        bodies = [self._body(request, load.num_generations) for request in requests]
        before, busy = self._counts(), time.process_time()
        started = time.perf_counter()
        answers = _run(_ask_all(f"{self.url}/v1/completions", requests, bodies, load.in_flight))
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
        arrivals, tokens = Arrivals(), 0
        for request, answer in zip(requests, answers, strict=True):
            tokens += _checked(request, load.num_generations, answer)
            for came in answer.came.values():
                arrivals.add(answer.sent, came)
        counts = self._settled(before, tokens)
        return Measured(
            seconds,
            tokens,
            dict(counts.generated),
            arrivals,
            preemptions=counts.preemptions,
            prefix_cache_hit_share=counts.hits / counts.queried if counts.queried else None,
            client_share=busy / seconds,
        )

    def _body(self, request: Request, completions: int) -> bytes:
        asked: dict[str, Any] = {"model": self.model, "prompt": request.prompt, "n": completions, **NEUTRAL}
        asked |= {"max_tokens": request.length, "ignore_eos": True}
        if request.timed:
            asked |= {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        return json.dumps(asked).encode()

    def _counts(self) -> Counts:
        return read_counts(self._fetch("GET", "/metrics").decode())

    def _settled(self, before: Counts, tokens: int) -> Counts:
        """The server's counts of a round, once all of it is counted."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            counts = self._counts().since(before)
            if sum(counts.generated.values()) >= tokens or time.monotonic() > deadline:
                return counts
            time.sleep(0.1)

    def _fetch(self, method: str, path: str) -> bytes:
        return _run(_fetch(method, f"{self.url}{path}"))


def _run(work: Any) -> Any:
    """Raises ServerFailed for whatever breaks a connection."""
    try:
        return asyncio.run(work)
    except (aiohttp.ClientError, OSError) as error:
        raise ServerFailed(f"the connection to the server broke: {type(error).__name__}: {error}") from error


async def _fetch(method: str, url: str) -> bytes:
    async with aiohttp.ClientSession(headers=bearer()) as session, session.request(method, url) as response:
        return await _read(response)


async def _ask_all(url: str, requests: Sequence[Request], bodies: Sequence[bytes], in_flight: int) -> list[Answer]:
    """In the order of the requests, `in_flight` at a time."""
    answers: list[Answer | None] = [None] * len(requests)
    waiting = iter(range(len(requests)))
    connector, no_limit = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    headers = {"Content-Type": "application/json", **bearer()}
    async with aiohttp.ClientSession(connector=connector, timeout=no_limit, headers=headers) as session:

        async def lane(left: Iterator[int]) -> None:
            for place in left:
                answers[place] = await _ask(session, url, bodies[place], streamed=requests[place].timed)

        await asyncio.gather(*(lane(waiting) for _ in range(in_flight)))
    return [answer for answer in answers if answer is not None]


async def _ask(session: aiohttp.ClientSession, url: str, body: bytes, *, streamed: bool) -> Answer:
    answer = Answer(time.perf_counter())
    async with session.post(url, data=body) as response:
        if not streamed or response.status != 200:
            answer.body = await _read(response)
            return answer
        async for line in response.content:
            if line.startswith(b"data: {"):
                _take(answer, json.loads(line[6:]), time.perf_counter())
    return answer


def _take(answer: Answer, message: dict[str, Any], now: float) -> None:
    """A message is about one completion and says how many tokens that has by now; the last one is about all."""
    if "error" in message:
        raise ServerFailed(f"the server broke off: {message['error']}")
    if not message["choices"]:
        answer.usage = message["usage"]
        return
    completion, total = message["choices"][0]["index"], message["usage"]["completion_tokens"]
    if fresh := total - answer.totals.get(completion, 0):
        answer.totals[completion] = total
        answer.came.setdefault(completion, []).append((now, fresh))


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Raises ServerFailed or BenchFailed for an answer that is none."""
    body = await response.read()
    if response.status != 200:
        message = f"the server answered {response.status} to {response.url.path}: {body[:500].decode(errors='replace')}"
        raise (ServerFailed if response.status >= 500 else BenchFailed)(message)
    return body


def _checked(request: Request, completions: int, answer: Answer) -> int:
    """The completion tokens that the server reports. Raises BenchFailed if they are not those asked for."""
    usage = answer.usage if request.timed else json.loads(answer.body)["usage"]
    if usage is None:
        raise BenchFailed("the server ended a stream without its usage")
    counted = (usage["prompt_tokens"], usage["completion_tokens"])
    wanted = (len(request.prompt), completions * request.length)
    if counted != wanted:
        raise BenchFailed(f"the server reports {counted} tokens of prompt and completions, {wanted} were asked for")
    lengths = list(answer.totals.values())
    if request.timed and lengths != [request.length] * completions:
        raise BenchFailed(f"a stream brought completions of {lengths} tokens, not {completions} of {request.length}")
    return usage["completion_tokens"]


def generator(config: Config, plan: BenchPlan) -> Client:
    return Client(plan.url)
