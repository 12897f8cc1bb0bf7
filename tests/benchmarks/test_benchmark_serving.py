import asyncio
import contextlib

import pytest

from benchmarks.serving import load_test, request, table


@pytest.fixture
def answers(monkeypatch):
    """Runs a load test against a server that answers every request with its body, and counts the connections."""
    monkeypatch.setattr("benchmarks.serving.WARM_UP_SECONDS", 0.02)

    async def serve(clients, expected):
        connections = []

        async def echo(reader, writer):
            connections.append(writer)
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
                    body = head.split()[1] + await reader.readexactly(length)
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            figures = await load_test(port, request("/path", b"body"), clients, 0.1, expected)
        return figures, len(connections)

    return lambda *arguments: asyncio.run(serve(*arguments))


def test_every_client_has_a_connection(answers):
    figures, connections = answers(3, b"/pathbody")
    assert connections == 3
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    assert figures["per_second"] > 0


def test_a_wrong_answer_ends_it(answers):
    with pytest.raises(RuntimeError, match=r"wrong answer: .*/pathbody"):
        answers(2, b"other")


def test_table():
    row = {"model": "net", "run_ms": 0.0154, "request": "raw", "clients": 8, "p50_ms": 1.234, "p99_ms": 5.678}
    results = {
        "command": "python -m benchmarks.serving",
        "machine": {"cpu": "Processor", "lwc": "1.0", "python": "3.11.1", "date": "2026-01-02"},
        "processors": 1,
        "packages": {"fastapi": "0.1"},
        "seconds": 5.0,
        "rows": [{**row, "per_second": 99.7}],
    }
    text = table(results)
    assert "| net | 0.015 | raw | 8 | 1.23 | 5.68 | 100 |\n" in text
    assert "Processor, 1 processor for server and clients together." in text
