"""Serve the page on one address, and let the browser ask no other."""

from __future__ import annotations

import socket
import sys
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware

from prompt_tuning.page.blocks import APPEARANCE, PRIVATE
from prompt_tuning.support.text import print_text

LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = "default-src 'self' 'unsafe-inline' data: blob:; frame-ancestors 'none'; form-action 'none'"
"""What a browser may load: nothing of another address."""


class OnlyThisPage:
    """Middleware that sends the policy by which a browser loads nothing of another address."""

    def __init__(self, app: Any) -> None:
        """Wrap an application."""
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Add the headers to a response."""

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self.app(scope, receive, send_with_policy)


def page_app(page: gr.Blocks, host: str) -> FastAPI:
    """Return the application that serves a page.

    Args:
        page: of `build_page`.
        host: the address that it is served on. On the loopback address only requests that name it are answered, so
            that no page of another site reaches it by a name of its own.
    """
    app = FastAPI(openapi_url=None)
    if host in LOOPBACK:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    app.add_middleware(OnlyThisPage)
    return gr.mount_gradio_app(app, page, path="/", server_name=host, **APPEARANCE, **PRIVATE)


def serve(page: gr.Blocks, listener: socket.socket) -> None:
    """Serve a page until the process is interrupted.

    Args:
        page: of `build_page`.
        listener: a socket that listens on the address.

    Raises:
        KeyboardInterrupt: the user has ended the command.
    """
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print_text(f"http://{shown}:{port}/ shows the page. Ctrl-C ends it.")
    sys.stdout.flush()  # A pipe would keep the address until the end.
    config = uvicorn.Config(page_app(page, host), log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])
