"""Concurrent clients of the example that keep a ledger of acknowledged writes."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

PASSWORD = "correct horse battery"
TIMEOUT = 60.0  # of a request, in seconds
Kill = Callable[[], bool]
"""Kills the server or a part of it; returns whether all of it is gone."""


class UnansweredError(Exception):
    """The connection broke before the response arrived: the write may or may not have happened."""


@dataclass(frozen=True)
class Content:
    """The content of an item: rows in two tables, so that half a write is visible."""

    title: str
    tags: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the body of a request."""
        return {"title": self.title, "tags": [{"name": tag} for tag in self.tags]}


def content_of(item: dict[str, Any]) -> Content:
    """Return the content of an item in a response."""
    return Content(item["title"], tuple(tag["name"] for tag in item["tags"]))


@dataclass
class Ledger:
    """What the tables must contain, and what they may contain if no response arrived."""

    users: set[str] = field(default_factory=set)
    possible_users: set[str] = field(default_factory=set)
    items: dict[int, set[Content | None]] = field(default_factory=dict)
    """The possible contents of each item by id; None stands for a deleted item."""
    possible_items: set[Content] = field(default_factory=set)

    def differences(self, users: list[str], items: dict[int, Content]) -> Iterator[str]:
        """Compare the ledger with the tables, and yield a description of each difference."""
        found = Counter(users)
        yield from (f"lost: user {email}" for email in self.users - found.keys())
        yield from (
            f"unexpected: user {email}, {count} times"
            for email, count in found.items()
            if count > 1 or email not in self.users | self.possible_users
        )
        for item_id in self.items.keys() | items.keys():
            expected, content = self.items.get(item_id, {None}), items.get(item_id)
            # SQLite may reuse the id of the last item after it was deleted.
            is_possible = None in expected and content in self.possible_items
            if content not in expected and not is_possible:
                yield f"item {item_id} is {content}, not one of {expected}"


class Load:
    """Clients that use the service concurrently, and a record of the responses."""

    def __init__(self, clients: int = 32) -> None:
        self.ledger = Ledger()
        self.answers: Counter[tuple[str, int]] = Counter()
        self.unexpected: list[str] = []
        self.unanswered = 0
        self._clients = [Client(self, f"client{number}") for number in range(clients)]
        self._left = 0
        self._kill: Kill | None = None
        self._kill_at = 0

    def run(self, url: str, requests: int, kill: Kill | None = None) -> None:
        """Make this many requests. Call `kill` after half of them; if it returns True, stop."""
        self._left = requests
        self._kill, self._kill_at = kill, requests // 2
        asyncio.run(self._run(url))

    async def _run(self, url: str) -> None:
        async with asyncio.TaskGroup() as group:
            for client in self._clients:
                group.create_task(client.use(url))

    @property
    def is_over(self) -> bool:
        """Whether all requests have been made."""
        return self._left <= 0

    def count(self, operation: str, expected: int, response: httpx.Response) -> None:
        """Count a response, note an unexpected one, and call `kill` when it is due."""
        self.answers[operation, response.status_code] += 1
        if response.status_code != expected:
            self.note(f"{operation}: {response.status_code}, not {expected}: {response.text[:300]}")
        self._left -= 1
        if self._kill is not None and self._left == self._kill_at and self._kill():
            self._left = 0

    def miss(self, operation: str, error: httpx.TransportError) -> None:
        """Count a request without a response, which only a killed server may cause."""
        self.unanswered += 1
        self._left -= 1
        if self._kill is None:
            self.note(f"{operation}: {error!r}")

    def note(self, what: str) -> None:
        """Record something unexpected."""
        self.unexpected.append(what)

    def report(self) -> str:
        """Return the counts of responses by operation and status, and examples of what is wrong."""
        counts = [
            f"  {name} {code}: {count}" for (name, code), count in sorted(self.answers.items())
        ]
        return "\n".join(
            [
                f"{self.answers.total()} responses, {self.unanswered} requests without one:",
                *counts,
                f"{len(self.unexpected)} unexpected, such as:",
                *self.unexpected[:10],
            ]
        )


class Client:
    """A user who makes one request after another, and knows the right response to each."""

    def __init__(self, load: Load, name: str) -> None:
        self._load = load
        self._ledger = load.ledger
        self._name = name
        self._random = random.Random(name)
        self._numbers = itertools.count()
        self._email = ""
        self._token = ""
        self._items: dict[int, Content] = {}
        self._created: set[int] = set()

    async def use(self, url: str) -> None:
        """Make random requests until the load is over."""
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(
            base_url=url, timeout=TIMEOUT, limits=limits, verify=False
        ) as self._http:
            while not self._load.is_over:
                if self._items:
                    await self._random.choices(OPERATIONS, WEIGHTS)[0](self)
                elif self._token:
                    await self.create()
                elif await self.sign_up():
                    await self.log_in()

    async def ask(
        self, operation: str, expected: int, method: str, path: str, **options: Any
    ) -> httpx.Response | None:
        """Make a request. Return the response if it has the expected status."""
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            response = await self._http.request(method, path, headers=headers, **options)
        except httpx.TransportError as error:
            self._load.miss(operation, error)
            raise UnansweredError from error
        self._load.count(operation, expected, response)
        return response if response.status_code == expected else None

    def compare(self, what: str, found: object, expected: object) -> None:
        """Record a response that contradicts what was acknowledged before."""
        if found != expected:
            self._load.note(f"{what}: {found}, not {expected}")

    def new_content(self) -> Content:
        """Make content that no other item has or had."""
        title = f"{self._name}-{next(self._numbers)}"
        return Content(title, (f"a-{title}", f"b-{title}"))

    def any_item(self) -> int:
        """Choose one of the client's items."""
        return self._random.choice(list(self._items))

    async def sign_up(self) -> bool:
        email = f"{self._name}-{next(self._numbers)}@example.com"
        account = {"email": email, "password": PASSWORD}
        self._ledger.possible_users.add(email)
        with suppress(UnansweredError):
            response = await self.ask("sign up", 201, "POST", "/users", json=account)
            self._ledger.possible_users.remove(email)
            if response is not None:
                self._ledger.users.add(email)
                self._email = email
                return True
        return False

    async def log_in(self) -> None:
        form = {"username": self._email, "password": PASSWORD}
        with suppress(UnansweredError):
            response = await self.ask("log in", 200, "POST", "/token", data=form)
            if response is not None:
                self._token = response.json()["access_token"]

    async def create(self) -> None:
        content = self.new_content()
        self._ledger.possible_items.add(content)
        with suppress(UnansweredError):
            response = await self.ask("create", 201, "POST", "/items", json=content.as_json())
            self._ledger.possible_items.remove(content)
            if response is not None:
                self.compare("created", content_of(response.json()), content)
                item_id = response.json()["id"]
                self._created.add(item_id)
                self._items[item_id] = content
                self._ledger.items[item_id] = {content}

    async def read(self) -> None:
        item_id = self.any_item()
        with suppress(UnansweredError):
            response = await self.ask("read", 200, "GET", f"/items/{item_id}")
            if response is not None:
                self.compare("read", content_of(response.json()), self._items[item_id])

    async def change(self) -> None:
        item_id = self.any_item()
        # Without a response, either content is possible: leave the item alone from now on.
        old, new = self._items.pop(item_id), self.new_content()
        self._ledger.items[item_id] = {old, new}
        with suppress(UnansweredError):
            path, body = f"/items/{item_id}", new.as_json()
            response = await self.ask("change", 200, "PATCH", path, json=body)
            self._items[item_id] = old if response is None else new
            self._ledger.items[item_id] = {self._items[item_id]}

    async def delete(self) -> None:
        item_id = self.any_item()
        old = self._items.pop(item_id)
        self._ledger.items[item_id] = {old, None}
        with suppress(UnansweredError):
            response = await self.ask("delete", 204, "DELETE", f"/items/{item_id}")
            if response is None:
                self._items[item_id] = old
            self._ledger.items[item_id] = {old if response is None else None}

    async def list_all(self) -> None:
        query: dict[str, str | int] = {"limit": 5}
        found: dict[int, Content] = {}
        with suppress(UnansweredError):
            while response := await self.ask("list", 200, "GET", "/items", params=query):
                page = response.json()
                found |= {item["id"]: content_of(item) for item in page["items"]}
                if page["next_cursor"] is None:
                    mine = {item_id: found.get(item_id) for item_id in self._items}
                    self.compare("listed", mine, self._items)
                    return
                query["cursor"] = page["next_cursor"]

    async def send_bad_request(self) -> None:
        account = {"email": self._email, "password": PASSWORD}
        wrong = {"username": self._email, "password": "wrong horse battery"}
        title = self.new_content().title
        requests: list[tuple[str, int, str, str, dict[str, Any]]] = [
            ("sign up again", 409, "POST", "/users", {"json": account}),
            ("log in wrongly", 401, "POST", "/token", {"data": wrong}),
            ("create wrongly", 422, "POST", "/items", {"json": {"title": title, "price": -1}}),
            ("read nothing", 404, "GET", f"/items/{2**31 - 1}", {}),
            ("bad cursor", 422, "GET", "/items?cursor=x", {}),
        ]
        name, expected, method, path, options = self._random.choice(requests)
        with suppress(UnansweredError):
            await self.ask(name, expected, method, path, **options)

    async def change_foreign(self) -> None:
        """Try to change another user's item."""
        body = self.new_content().as_json()
        if foreign := self._ledger.items.keys() - self._created:
            with suppress(UnansweredError):
                await self.ask("change foreign", 404, "PATCH", f"/items/{min(foreign)}", json=body)


Operation = Callable[[Client], Awaitable[None]]
WEIGHTED: dict[Operation, int] = {
    Client.create: 25,
    Client.read: 20,
    Client.change: 20,
    Client.delete: 10,
    Client.list_all: 5,
    Client.send_bad_request: 10,
    Client.change_foreign: 3,
    Client.log_in: 2,
}
OPERATIONS, WEIGHTS = list(WEIGHTED), list(WEIGHTED.values())
