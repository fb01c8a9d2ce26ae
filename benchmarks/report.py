"""Write what was measured into docs/performance.md, with tables and plots."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.plots import Bar, bar_chart
from tests.rendering import ROOT

MEASURED = ROOT / "benchmarks/measured.json"
PAGE = ROOT / "docs/performance.md"
IMAGES = ROOT / "docs/images"
DATABASES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
OURS, THEIRS = "this template", "bare FastAPI"
# The goals: at least this share of the throughput; at most this multiple, or so much more.
THROUGHPUT, P99, START, MEMORY, PAGES = 0.9, 1.2, 1.25, 1.05, 1.1
COPY, UPDATE, UPDATE_PY = 2.0, 2.0, 1.5
SUITE, TWO_WORKERS, ONE_TEST, POSTGRESQL = 8.0, 1.6, 1.3, 2.0
SCHEMES = {
    "rolled back": "is rolled back (the default)",
    "committed": "commits and is cleaned up after, with `@pytest.mark.committed`",
    "SQLAlchemy's recipe": "is rolled back by SQLAlchemy's recipe, which isolates less",
    "DELETE": "is followed by DELETE from all tables",
    "TRUNCATE": "is followed by TRUNCATE",
    "an engine per test": "has its own engine, and nothing is deleted",
    "create_all, drop_all": "creates and drops all tables",
    "a database copy per test": "has its own copy of the database",
}

SERVICE = """\
The example is compared with a bare FastAPI application, `benchmarks/bare/main.py`. It runs the same
queries with the same driver, and has no JSON logs, no limits, no error responses and no graceful
shutdown. Both run with `fastapi run`, one worker and sixteen clients. The goal is at least
{throughput} of the throughput, and at most {p99} times the 99th percentile."""

# Where goals are missed, and what the profiles show.
REASONS = """\
## Why some goals are missed

- **Throughput and response times.** SQLAlchemy takes about half the time of a request in both
  applications. In the service, middleware and dependencies take another 4 %, FastAPI takes 3 %
  more because there are more dependencies, and JSON logs take 2 %. On SQLite, a request reads in
  a transaction, so that all its statements see the same state. A request that may write takes the
  write lock with its first statement, so that what it has read is still true when it writes.
  Writers therefore wait for one another longer than in the bare application, which locks for the
  `INSERT` alone. Use PostgreSQL for many concurrent writers.
- **The start.** The service also imports Alembic, for `/readyz`, PgQueuer, `structlog`,
  OpenTelemetry and an HTTP client. What it imports is listed in a test.
- **The whole suite.** It has about 900 tests, and takes about 35 milliseconds for each. The
  slowest is the contract test, with five seconds: it calls each operation with generated input.
- **Two workers.** Each one imports and collects all tests, which takes four seconds. And two
  busy cores of this machine are slower than one: a loop takes 1.2 times as long in two processes
  at once.
- **One test.** Beyond the application's dependencies, it imports pytest, the application, the
  HTTP client with WebSockets, Faker and polyfactory, which pytest-randomly seeds in each run, and
  trio, because the plugin of AnyIO imports every backend that is installed. The test itself
  takes 0.2 seconds.
- **Isolation.** It costs a few more statements per test, savepoints or deletions, so it costs
  more where statements are slow. The goals are 1.3 and 1.6.
- **`copier copy` and `copier update`.** A project has about 170 files. Copier compiles the path
  of each file as a template, which takes 40 % of the time, and calls git for each file, which
  takes 20 %. An update renders the project three times."""

Found = dict[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Write a table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["", *(f"| {' | '.join(cells)} |" for cells in lines), ""]


def number(value: float) -> str:
    """Write a number with three digits or fewer."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def service(found: Found) -> list[str]:
    """Write about the service against the bare application."""
    rows, throughput, slowest = [], [], []
    for database, name in DATABASES.items():
        for each in found["service"][database]["throughput"]:
            ours, theirs = (each["round_trips"][who] for who in (OURS, THEIRS))
            rows.append(
                [
                    f"{each['what']}, {name}",
                    number(each["throughput"]),
                    number(each["p99"]),
                    f"{ours} and {theirs}",
                ]
            )
            label = f"{each['what']}, {name}"
            throughput.append(Bar(label, each["throughput"], THROUGHPUT))
            slowest.append(Bar(label, each["p99"], P99))
    title = "Requests a second, as a share of bare FastAPI"
    write_image("throughput", bar_chart(title, throughput, more_is_better=True))
    title = "The 99th percentile of a response time, as a multiple of bare FastAPI"
    write_image("p99", bar_chart(title, slowest))
    others = []
    for database, name in DATABASES.items():
        measured = found["service"][database]
        start, pages, memory = measured["start"], measured["pages"], found["memory"][database]
        few, many = memory["requests"]
        others += [
            [f"start to the first 200, {name}", "the bare application", number(start["ratio"]),
             f"{START}"],
            [f"memory after {many:,} requests, {name}", f"after {few:,}",
             number(memory["ratio"]), f"{MEMORY}"],
            [f"page 1,000 of {pages['rows']:,} rows, {name}", "page 1", number(pages["ratio"]),
             f"{PAGES}"],
        ]  # fmt: skip
    return [
        "## The service",
        "",
        SERVICE.format(throughput=THROUGHPUT, p99=P99),
        *table(["request", "throughput", "99th percentile", "statements"], rows),
        "![Throughput](images/performance-throughput.svg)",
        "",
        "![The 99th percentile](images/performance-p99.svg)",
        "",
        "The last column counts what each application sends to the database for one request,",
        "including `BEGIN`, `COMMIT` and `ROLLBACK`.",
        *table(["", "compared with", "ratio", "goal, at most"], others),
    ]


def projects(found: Found) -> list[str]:
    """Write about the tests of a project, and about rendering and updating one."""
    suites, copies = found["suites"], found["copier"]
    taken = suites["seconds"]
    rows = [
        ["the whole suite with the example, SQLite", "one core", f"{taken['one core']:.1f} s",
         f"{SUITE:.0f} s"],
        ["the same, with `-n 2`", "one core", f"{suites['two workers']:.2f} times as fast",
         f"{TWO_WORKERS} times"],
        ["one test by its id, SQLite", "importing the dependencies",
         f"{suites['one test']:.2f} times", f"{ONE_TEST} times"],
        ["one test by its id, PostgreSQL", "the same on SQLite",
         f"{suites['postgresql']:.1f} s more", f"{POSTGRESQL:.0f} s more"],
        ["`copier copy`", "a template of one file", f"{copies['copy']:.2f} times", f"{COPY} times"],
        ["`copier update`", "a template of one file", f"{copies['update']:.2f} times",
         f"{UPDATE} times"],
        ["`scripts/update.py` without the checks", "`copier update`",
         f"{copies['update.py']:.2f} times", f"{UPDATE_PY} times"],
    ]  # fmt: skip
    return ["## A project", *table(["", "compared with", "measured", "goal"], rows)]


def isolation(found: Found) -> list[str]:
    """Write about what isolation costs."""
    rows = []
    for scheme, words in SCHEMES.items():
        cells = [
            number(ratios[scheme]) if scheme in ratios else ""
            for database in DATABASES
            for ratios in found["isolation"][database]
        ]
        if any(cells):
            rows.append([words, *cells])
    bars = [
        Bar(f"{scheme}, {name}", found["isolation"][database][0][scheme], goal)
        for database, name in DATABASES.items()
        for scheme, goal in (("rolled back", 1.3), ("committed", 1.6))
    ]
    title = "A test that writes and reads, as a multiple of no isolation"
    write_image("isolation", bar_chart(title, bars))
    head = ["each test", "SQLite, 10", "200", "PostgreSQL, 10", "200"]
    return [
        "## What isolation costs",
        "",
        "The time of a test that writes and reads through the API, as a multiple of the same test",
        "without isolation. The database has ten tables or two hundred. These are medians of",
        f"{found['isolation']['tests']} tests each, taken in turns.",
        *table(head, rows),
        "![Isolation](images/performance-isolation.svg)",
        "",
    ]


def write_image(name: str, svg: str) -> None:
    """Write a plot."""
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / f"performance-{name}.svg").write_text(svg, encoding="utf-8")


def write_page() -> None:
    """Write the page from what was measured last."""
    found: Found = json.loads(MEASURED.read_text(encoding="utf-8"))
    machine = found["machine"]
    versions = ", ".join(f"`{name}` {version}" for name, version in found["versions"].items())
    lines = [
        "# Performance",
        "",
        "Each figure is the median of ratios that were measured in turns on one machine. Compare",
        "the ratios, not the seconds, which depend on the machine.",
        "",
        *service(found),
        *projects(found),
        *isolation(found),
        REASONS,
        "",
        "## Measure it on your machine",
        "",
        "In a clone of the template, with nothing else running:",
        "",
        "<!-- not run: it takes hours; the benchmarks are type-checked -->",
        "```sh",
        "uv run --no-active python -m benchmarks",
        "```",
        "",
        f"These figures are from {machine['date']}: {found['rounds']} rounds on {machine['cores']} "
        f"cores of",
        f"`{machine['processor']}`, {machine['system']}, with {versions}.",
    ]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
