"""The service, without its database, on asyncio and trio."""

from fastapi import FastAPI

from app.core import health
from tests.http_client import ASGIWebSocketTransport, AsyncClient
from tests.patterns.backends import on_both_backends, run_on


@on_both_backends
def test_livez_answers(backend: str) -> None:
    app = FastAPI()
    app.include_router(health.router)

    async def check() -> None:
        transport = ASGIWebSocketTransport(app=app)
        async with AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.get("/livez")
        assert (response.status_code, response.json()) == (200, {"status": "ok"})

    run_on(backend, check)
