import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from index.picture_rows import head as index_head
from serve.service_toys import error, picture_bytes

from modalloy.errors import CheckpointError, ConfigError
from modalloy.index import create_index
from modalloy.serve import ServeConfig, serve

QUESTION = {"parts": [{"text": "a"}], "k": 1}
PROGRAM = Path(__file__).with_name("running_service.py")


@contextmanager
def running(folder):
    """A service in a process of its own, and its address."""
    command = [sys.executable, str(PROGRAM), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in process.stdout:
            if found := re.search(r"listening on (http://\S+)", line):
                yield process, found[1]
                break
        else:
            pytest.fail("the service didn't start")
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        (folder / f"{number}.png").write_bytes(picture_bytes(number))
    return folder


@pytest.fixture(scope="module")
def service(folder):
    with running(folder) as service:
        yield service


@pytest.fixture
def address(service):
    return service[1]


def ask_slowly(address, seconds):
    """Asks a question that takes that long, in a thread, and waits until it is being answered."""
    found = []

    def ask():
        try:
            body = {**QUESTION, "target": "text", "k": seconds}
            found.append(httpx.post(f"{address}/v1/search", json=body, timeout=60).status_code)
        except httpx.HTTPError as error:
            found.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    while asking.is_alive() and "modalloy_queue 1.0" not in httpx.get(f"{address}/metrics").text:
        pass
    return asking, found


def answered(address, head, *body):
    """The status that raw bytes are answered with, whether or not all of them were taken."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        try:
            connection.sendall(head)
            for part in body:
                connection.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            pass
        return int(connection.recv(2000).split()[1])


def head(*headers):
    lines = ("POST /v1/search HTTP/1.1", "Host: localhost", "Content-Type: multipart/form-data; boundary=x", *headers)
    return "\r\n".join((*lines, "", "")).encode()


@pytest.mark.slow
def test_bodies_are_capped_while_they_stream(address):
    part = b'--x\r\nContent-Disposition: form-data; name="pictures"; filename="a"\r\n\r\n'
    chunks = [b"%x\r\n%s\r\n" % (len(content), content) for content in (part, *[bytes(40_000)] * 3)]
    assert answered(address, head("Transfer-Encoding: chunked"), *chunks) == 413
    assert answered(address, head("Content-Length: 100001")) == 413
    assert answered(address, head("Content-Length: 99999999999999999999999")) in (400, 413)
    assert answered(address, head("Content-Length: -1")) == 400
    assert answered(address, head("Content-Length: 5", "Content-Length: 6")) == 400
    # No more is read than was announced.
    assert answered(address, head("Content-Length: 5"), bytes(5), bytes(200_000)) == 400
    assert answered(address, b"GET /v1/picture?id=../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n") == 404
    assert answered(address, b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n") == 404
    assert answered(address, b"GET /static/..%2f..%2fapp.py HTTP/1.1\r\nHost: localhost\r\n\r\n") == 404
    assert answered(address, b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n") == 400
    assert answered(address, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n") == 400
    assert answered(address, b"GET / HTTP/1.1\r\n\r\n") == 400


@pytest.mark.slow
def test_real_requests_are_answered(address):
    with httpx.Client(base_url=address) as client:
        assert client.post("/v1/search", json=QUESTION).json()["searched"] == 3
        form = {"data": {"query": json.dumps({"parts": [{"upload": 0}], "k": 1})}}
        reply = client.post("/v1/search", files=[("pictures", ("a.png", picture_bytes(0)))], **form)
        assert reply.json()["hits"][0]["id"]
        large = client.post(
            "/v1/search", content=bytes(100_001), headers={"Content-Type": "multipart/form-data; boundary=x"}
        )
        assert "100,000" in error(large, 413)
        assert client.get("/v1/picture?id=1.png").content == picture_bytes(1)
        assert "server" not in client.get("/health/ready").headers


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_a_stop_lets_a_search_finish(service):
    process, address = service
    asking, found = ask_slowly(address, 1)
    process.terminate()
    out, _ = process.communicate(timeout=60)
    asking.join(60)
    assert found == [200] and process.returncode == 0
    assert f"stopped {address}" in out and "Traceback" not in out
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_a_stop_waits_for_no_search_for_ever(folder):
    with running(folder) as (process, address):
        asking, found = ask_slowly(address, 100)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        asking.join(60)
        assert process.returncode == 0 and "given up" in out and found != [200]


@pytest.fixture
def location(tmp_path):
    """An index of an encoder that can't be loaded."""
    return create_index(tmp_path / "index", index_head(tmp_path, "nobodys")).location


def test_a_port_that_is_taken_is_named(location):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="--port"):
        serve(location, ServeConfig(port=taken.getsockname()[1]))


def test_mistakes_are_found_before_anything_is_loaded(location, monkeypatch):
    monkeypatch.delenv("MODALLOY_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="insecure"):
        serve(location, ServeConfig("0.0.0.0"))
    with pytest.raises(OSError, match=r"192\.0\.2\.1"):
        serve(location, ServeConfig("192.0.2.1", port=0, insecure=True))
    with pytest.raises(ConfigError, match="nobodys"):
        serve(location, ServeConfig(port=0))


def test_a_missing_index_is_found_before_all_other_mistakes(monkeypatch, tmp_path):
    monkeypatch.delenv("MODALLOY_API_KEY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(CheckpointError, match="holds no index"):
        serve(str(tmp_path / "nowhere"), ServeConfig("0.0.0.0", port=taken.getsockname()[1]))
