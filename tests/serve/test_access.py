import pytest
from serve.service_toys import error

from modalloy.errors import ConfigError
from modalloy.serve import ServeConfig, create_app
from modalloy.serve.auth import ENVIRONMENT_VARIABLE

KEY = "correct-horse-battery"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


@pytest.fixture
def key_file(tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    return tmp_path / "key"


CLOSED = [
    "/v1/index",
    "/v1/item?id=deep:1.png",
    "/v1/picture?id=deep:1.png",
    "/v1/thumbnail?id=deep:1.png",
    "/v1/openapi.json",
    "/metrics",
]


def test_the_key_opens_everything_and_nothing_else_does(serving, key_file):
    client = serving(api_key_file=key_file)
    for path in CLOSED:
        for good in ({"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer  {KEY}"}, {"X-API-Key": KEY}):
            assert client.get(path, headers=good).status_code == 200
        for bad in (
            {},
            {"Authorization": KEY},
            {"Authorization": f"Basic {KEY}"},
            {"Authorization": "Bearer"},
            {"Authorization": f"Bearer {KEY}x"},
            {"X-API-Key": KEY[:-1]},
            {"X-API-Key": ""},
            {"X-API-Key": b"\xff\xfe"},
            {"Cookie": f"key={KEY}"},
        ):
            refused = client.get(path, headers=bad)
            assert KEY not in error(refused, 401, "unauthorized") and refused.headers["www-authenticate"] == "Bearer"
        assert client.get(f"{path}{'&' if '?' in path else '?'}key={KEY}").status_code == 401
    error(client.post("/v1/search", json={"parts": [{"text": "a"}]}), 401)
    error(client.post("/v1/search", content=b"x" * 2_000_000), 401)
    error(client.get("/nowhere"), 401)


def test_health_and_the_page_are_open(serving, key_file):
    client = serving(api_key_file=key_file)
    for path in ("/", "/static/app.js", "/health/live", "/health/ready"):
        assert client.get(path).status_code == 200
    for path in ("/static/../v1/index", "/health/../metrics", "//v1/index", "/HEALTH/live", "/v1/index/", "/health"):
        assert client.get(path).status_code in (401, 404)


def test_the_environment_may_hold_the_key(serving, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, KEY)
    client = serving()
    assert client.get("/v1/index", headers={"X-API-Key": KEY}).status_code == 200
    error(client.get("/v1/index"), 401)


def test_the_file_goes_before_the_environment(serving, monkeypatch, key_file):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "another")
    assert serving(api_key_file=key_file).get("/v1/index", headers={"X-API-Key": KEY}).status_code == 200


@pytest.mark.parametrize(
    ("content", "said"), [("", "empty"), (" \n", "empty"), ("two words", "one word"), ("é", "ASCII")]
)
def test_keys_that_cannot_be_sent_are_refused(searcher, tmp_path, content, said):
    (tmp_path / "key").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        create_app(searcher, ServeConfig(api_key_file=tmp_path / "key"))
    with pytest.raises(ConfigError, match="can't be read"):
        create_app(searcher, ServeConfig(api_key_file=tmp_path / "nowhere"))


def test_others_are_let_in_only_with_a_key(searcher, key_file):
    for host in ("0.0.0.0", "::", "192.0.2.1", "a.example"):
        with pytest.raises(ConfigError, match="--api-key-file"):
            create_app(searcher, ServeConfig(host))
    create_app(searcher, ServeConfig("0.0.0.0", api_key_file=key_file))
    create_app(searcher, ServeConfig("0.0.0.0", insecure=True))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8765", "[::1]:80", "LOCALHOST:1"])
def test_this_machines_names_are_answered(client, host):
    assert client.get("/v1/index", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8765", "", "[::1", "0"]
)
def test_other_names_are_refused(client, host):
    for path in ("/", "/v1/index", "/health/live"):
        assert "localhost" in error(client.get(path, headers={"Host": host}), 400, "bad_host")


def test_a_public_address_is_asked_by_any_name(serving):
    client = serving(host="0.0.0.0", insecure=True)
    assert client.get("/v1/index", headers={"Host": "search.example"}).status_code == 200


def test_other_sites_are_shut_out_by_default(client):
    origin = {"Origin": "https://evil.example"}
    for reply in (
        client.get("/v1/index", headers=origin),
        client.options("/v1/search", headers={**origin, "Access-Control-Request-Method": "POST"}),
    ):
        assert not [name for name in reply.headers if name.startswith("access-control")]


def test_a_site_that_is_named_is_let_in_alone(serving, key_file):
    client = serving(allow_origin=("https://good.example",), api_key_file=key_file)
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    reply = client.options("/v1/search", headers={"Origin": "https://good.example", **ask})
    assert reply.status_code == 200 and reply.headers["access-control-allow-origin"] == "https://good.example"
    reply = client.options("/v1/search", headers={"Origin": "https://evil.example", **ask})
    assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_other_sites_may_link_but_not_ask(serving, site):
    client = serving(allow_origin=("https://good.example",))
    evil = {"Origin": "https://evil.example", "Sec-Fetch-Site": site}
    ask = {"data": {"query": "{}"}, "files": [("pictures", ("a", b"a"))]}
    assert "--allow-origin" in error(client.post("/v1/search", headers=evil, **ask), 403, "forbidden")
    error(client.post("/v1/words", headers={"Sec-Fetch-Site": site}, json={}), 403)
    assert client.get("/", headers=evil).status_code == 200
    error(client.post("/v1/search", headers={**evil, "Origin": "https://good.example"}, **ask), 422)
    for here in ("same-origin", "none"):
        error(client.post("/v1/search", headers={"Sec-Fetch-Site": here}, **ask), 422)


@pytest.mark.parametrize("path", ["/", "/v1/index", "/nowhere", "/v1/thumbnail?id=x", "/health/live"])
def test_every_answer_has_the_security_headers(client, path):
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cross-origin-resource-policy"] == "same-origin" and headers["x-frame-options"] == "DENY"


def test_the_page_is_served_and_nothing_else(client, page):
    reply = client.get("/")
    assert reply.headers["content-type"] == "text/html; charset=utf-8" and "é" in reply.text
    for name, kind in {"app.js": "text/javascript", "style.css": "text/css", "icon.svg": "image/svg+xml"}.items():
        reply = client.get(f"/static/{name}")
        assert reply.content == (page / name).read_bytes() and reply.headers["content-type"].startswith(kind)
        again = client.get(f"/static/{name}", headers={"If-None-Match": reply.headers["etag"]})
        assert again.status_code == 304 and not again.content
    for path in ("", "..%2Fsecret.png", "fonts", "fonts/secret.txt", "fonts%2Fsecret.txt", "nowhere.js", "%00"):
        error(client.get(f"/static/{path}"), 404)


def test_the_page_can_be_left_out(serving):
    client = serving(page=False)
    error(client.get("/"), 404)
    error(client.get("/static/app.js"), 404)
    assert client.get("/v1/index").status_code == 200


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"port": -1}, "port"),
        ({"port": 65536}, "port"),
        ({"k_most": 0}, "k_most"),
        ({"queue": 0}, "queue"),
        ({"batch": 0}, "batch"),
        ({"decodes": 0}, "decodes"),
        ({"max_upload_bytes": 0}, "max_upload_bytes"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"batch_wait_ms": -1.0}, "batch_wait_ms"),
        ({"batch_wait_ms": float("nan")}, "batch_wait_ms"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"stop_s": float("inf")}, "stop_s"),
        ({"allow_origin": ("*",)}, "one by one"),
        ({"allow_origin": ("https://a.example/path",)}, "without a path"),
        ({"allow_origin": ("null",)}, "one by one"),
    ],
)
def test_configurations_that_cannot_work_are_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        ServeConfig(**change)
