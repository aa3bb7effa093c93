"""Who may ask the vLLM server of a run: whoever knows its key.

vLLM takes a key from `VLLM_API_KEY`, and asks for it at /v1 and a few other places, but not at the development
endpoints, which replace the weights (0.31: GUARDED_PREFIX in entrypoints/serve/middleware/authenticate.py). `Gate`,
which runs inside the server, asks for the same key everywhere. The key is the user's `VLLM_API_KEY` or one drawn for
the run; our children have it in their environment, and it is written nowhere.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

KEY = "VLLM_API_KEY"
GATE = f"{__name__}.Gate"
"""For `vllm serve --middleware`."""
OPEN = "/health"
"""What is answered without the key. It says nothing but that the server is up."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


@contextmanager
def drawn() -> Iterator[None]:
    """In this block our environment, and so that of every child, holds a key: the user's if there is one."""
    before = os.environ.get(KEY)
    os.environ[KEY] = before or secrets.token_urlsafe(32)
    try:
        yield
    finally:
        if before is None:
            del os.environ[KEY]
        else:
            os.environ[KEY] = before


def bearer() -> dict[str, str]:
    """Headers of a request to a server; none where there is no key."""
    key = os.environ.get(KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


class Gate:
    """ASGI middleware: 401 without the key. A server that has none does not start: RuntimeError."""

    def __init__(self, app: App) -> None:
        if not (expected := bearer()):
            raise RuntimeError(f"--middleware {GATE} needs a key: set {KEY} in the environment")
        self._app, self._expected = app, expected["Authorization"].encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] == OPEN or self._knows(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error": "this server asks for its key"}'})

    def _knows(self, scope: Message) -> bool:
        header = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(header, self._expected)
