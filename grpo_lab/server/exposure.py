"""Who can reach a vLLM server: its administrative endpoints replace weights and stop engines.

That of a run asks for a key (grpo_lab/server/key.py), which goes over the network unencrypted.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config


def is_public(address: str) -> bool:
    """Whether an address can be reached from outside of private networks. False for a name."""
    try:
        found = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return found.is_global or found.is_unspecified or found.is_multicast


def check_bind(config: Config, address: str, machine: str) -> None:
    """Raises RequestError where our own server would listen on a public address unasked."""
    if is_public(address) and not config.vllm.expose:
        raise RequestError(
            f"nodes={config.nodes}: the vLLM server would listen on {machine}'s public address {address}, where whoever"
            " reaches it can replace the weights;\nname the machines by a private network (hosts=), or vllm.expose=true"
            " behind a firewall"
        )


def check_url(config: Config) -> None:
    """Raises RequestError for a `vllm.url` that is none, or a server on a public address unasked; looks its name up."""
    url = config.vllm.url
    if url is None:
        return
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise RequestError(f"vllm.url={url}: {error}; use http://host:port") from error
    if parts.scheme not in ("http", "https") or not host:
        raise RequestError(f"vllm.url={url}: use http://host:port")
    if config.vllm.expose:
        return
    for address in _addresses(host):
        if is_public(address):
            raise RequestError(
                f"vllm.url={url}: {address} is a public address; whoever reaches that server can replace its weights."
                "\nUse a private network or an ssh tunnel (ssh -L 8000:localhost:8000), or vllm.expose=true"
            )


def _addresses(host: str) -> list[str]:
    """Those of a name; none where it is unknown, which attaching to the server will tell."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []
