"""An address that is taken before the model is loaded, and answers once everything slow is done."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress

from fastapi import FastAPI

from ..errors import InvalidInputError

STOPPING_SECONDS = 30  # what was taken on may take so long once the server is told to stop


def take_address(host: str, port: int) -> socket.socket:
    """Take an address that nobody can connect to yet.

    Args:
        host: A name or an IP address.
        port: 0 for any that is free.

    Raises:
        InvalidInputError: It is in use, or is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends at once (TCP_NODELAY) only where the protocol is named; else an answer's body waits 40 ms for the
    # client's acknowledgement of its head.
    address = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere it would let two servers listen
            address.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        address.bind((host, port))
    except OSError as error:
        address.close()
        raise InvalidInputError(
            f"host={host!r}, port={port} cannot be listened on: {error.strerror}. Choose another port, or port=0 for "
            "any that is free."
        ) from error
    return address


def listen(app: FastAPI, address: socket.socket, ready: Callable[[str], None]) -> None:
    """Answer at an address until the process is told to stop; what was taken on is finished first.

    Args:
        app: What `create_app` returned.
        address: What `take_address` returned.
        ready: Called with the URL once the first request can come.
    """
    import uvicorn  # brings a terminal kit, which the rest of the package needs none of

    host, port = address.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready(url)

    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=STOPPING_SECONDS)
    with suppress(KeyboardInterrupt):  # which uvicorn raises again, once it has stopped
        Server(config).run(sockets=[address])
