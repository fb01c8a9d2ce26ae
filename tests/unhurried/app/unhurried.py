"""Endpoints that take their time, or never end. They report on standard output."""

import asyncio
import time
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

router = APIRouter()


@router.get("/slow")
async def slow(seconds: float) -> str:
    print("slow: began", flush=True)
    try:
        await asyncio.sleep(seconds)
    finally:
        await asyncio.sleep(0)
        print("slow: cleaned up", flush=True)
    return "done"


@router.get("/thread")
def thread(seconds: float) -> str:
    print("thread: began", flush=True)
    time.sleep(seconds)
    return "done"


@router.get("/lines")
async def lines() -> StreamingResponse:
    async def endless() -> AsyncIterator[str]:
        print("lines: began", flush=True)
        try:
            while True:
                yield '{"line": 1}\n'
                await asyncio.sleep(0.05)
        finally:
            print("lines: cleaned up", flush=True)

    return StreamingResponse(endless(), media_type="application/jsonl")


@router.get("/events")
async def events() -> StreamingResponse:
    async def endless() -> AsyncIterator[str]:
        print("events: began", flush=True)
        yield "data: 1\n\n"
        await asyncio.Event().wait()

    return StreamingResponse(endless(), media_type="text/event-stream")


@router.get("/large")
async def large() -> StreamingResponse:
    async def blocks() -> AsyncIterator[bytes]:
        print("large: began", flush=True)
        for _ in range(1000):
            yield bytes(1_000_000)

    return StreamingResponse(blocks())


@router.post("/upload")
async def upload(request: Request) -> int:
    print("upload: began", flush=True)
    return len(await request.body())


@router.websocket("/attentive")
async def attentive(websocket: WebSocket) -> None:
    await websocket.accept()
    print("attentive: began", flush=True)
    try:
        await websocket.receive_text()
    except WebSocketDisconnect as end:
        await asyncio.sleep(0)
        print("attentive: cleaned up after", end.code, flush=True)


@router.websocket("/inattentive")
async def inattentive(websocket: WebSocket) -> None:
    await websocket.accept()
    print("inattentive: began", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        print("inattentive: cleaned up", flush=True)
