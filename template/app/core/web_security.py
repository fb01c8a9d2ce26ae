"""Security in browsers: the hosts and origins that are served, and response headers."""

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.config import ServiceSettings

PROBES = {"/livez", "/readyz"}
# Without Strict-Transport-Security: it applies to the whole host, so whatever has the certificate
# should send it, such as a reverse proxy.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "frame-ancestors 'none'",
}


def add_web_security(app: FastAPI, settings: ServiceSettings) -> None:
    """Serve the hosts and origins that `settings` allow, and add HEADERS to all responses."""
    if "*" not in settings.allowed_hosts:
        app.add_middleware(TrustedHosts, allowed_hosts=settings.allowed_hosts, www_redirect=False)
    make_stack = app.build_middleware_stack

    # Around everything else, so that a 500 response has these headers too, and pages can read it.
    def build_middleware_stack() -> ASGIApp:
        stack = make_stack()
        if settings.cors_origins:
            stack = CORSMiddleware(
                stack,
                allow_origins=settings.cors_origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=["Retry-After", "X-Request-ID"],
            )
        return SecurityHeaders(stack)

    app.build_middleware_stack = build_middleware_stack  # type: ignore[method-assign]


class TrustedHosts(TrustedHostMiddleware):
    """Refuses other hosts with 400, except for health probes, which use an IP address."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        await (self.app if path in PROBES else super().__call__)(scope, receive, send)


class SecurityHeaders:
    """Adds HEADERS to each response, and `no-store` if its request has `Authorization`.

    It does not overwrite headers that a response already has.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        added = HEADERS
        if any(name == b"authorization" for name, _ in scope["headers"]):
            added = HEADERS | {"Cache-Control": "no-store"}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in added.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)
