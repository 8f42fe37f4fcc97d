import json

import pytest
import torch
from serve.service_toys import error, picture_bytes, rows_of

from modalloy.align.words import WordMap
from modalloy.search import Part, Query
from modalloy.search.words import FoundWords

RED = {"parts": [{"text": "a red picture"}]}


def form(query, *pictures):
    return {"data": {"query": json.dumps(query)}, "files": [("pictures", ("a.png", each)) for each in pictures]}


def test_it_is_warm_before_it_is_ready(serving, searcher, encoder):
    client = serving()
    assert encoder.calls == [1, 1] and searcher.view.sampled == ("image", "text")
    client.post("/v1/search", json=RED)
    assert encoder.calls == [1, 1, 1]


def test_the_index_is_described(client, index):
    said = client.get("/v1/index").json()
    assert said["pictures"] == 7 and said["captions"] == 7 and said["encoder"] == "toy-1"
    assert said["version"] == index.snapshot().version and said["generation"] == 0
    assert said["fields"]["camera"] == "text" and said["fields"]["year"] == said["fields"]["width"] == "number"
    assert said["local_files"] is True and said["words"] is False and said["inputs"] == said["rerankers"] == []
    assert said["k_most"] == 200


@pytest.mark.parametrize("target", ["image", "text"])
def test_a_search_gives_the_searchers_answers_without_paths(client, searcher, root, target):
    reply = client.post("/v1/search", json={**RED, "k": 3, "target": target})
    answer, expected = reply.json(), searcher.search(Query((Part(text="a red picture"),), target, 3))
    assert reply.status_code == 200 and answer["searched"] == 7 and answer["version"] == expected.version
    for hit, wanted in zip(answer["hits"], expected.hits, strict=True):
        assert hit["id"] == wanted.id and hit["picture_id"] == wanted.picture_id
        assert hit["score"] == pytest.approx(wanted.score) and hit["captions"] == list(wanted.captions)
        assert hit["standard_score"] == pytest.approx(wanted.standard_score, abs=1e-4)
        assert hit["metadata"] == {"camera": "old", "year": 2000.0} and "path" not in hit
    assert '"year":2000}' in reply.text and str(root) not in reply.text
    assert {"encode", "search"} <= set(answer["milliseconds"])
    assert reply.headers["server-timing"].startswith("encode;dur=")


def test_parts_are_weighed_and_filtered(client, searcher):
    parts = [{"text": "one"}, {"like": "deep:1.png", "weight": -0.5}]
    where = [{"field": "path", "comparison": "in", "value": ["deep/0.jpg", "deep/2.webp"]}]
    answer = client.post("/v1/search", json={"parts": parts, "where": where}).json()
    assert {hit["id"] for hit in answer["hits"]} == {"deep:0.jpg", "deep:2.webp"} and answer["searched"] == 2


def test_an_uploaded_picture_finds_itself(client):
    query = {"parts": [{"upload": 0}], "k": 1}
    for number, (format, id) in enumerate({"PNG": "deep:0.jpg", "BMP": "deep:1.png"}.items()):
        (hit,) = client.post("/v1/search", **form(query, picture_bytes(number, format))).json()["hits"]
        assert hit["id"] == id and hit["score"] == pytest.approx(1, abs=1e-5)


def test_several_uploads_and_words_make_one_question(client):
    query = {"parts": [{"upload": 1}, {"text": "dark", "weight": 0.1}, {"upload": 0, "weight": -0.1}], "k": 1}
    (hit,) = client.post("/v1/search", **form(query, picture_bytes(3), picture_bytes(2))).json()["hits"]
    assert hit["id"] == "deep:2.webp"


def test_an_item_is_all_the_index_knows_but_no_path(client, root):
    reply = client.get("/v1/item", params={"id": "deep:1.png"})
    assert reply.json() == {
        "id": "deep:1.png",
        "captions": ["picture 1"],
        "metadata": {"camera": "old", "year": 2000.0},
        "width": 3,
        "height": 2,
        "split": "test",
        "source": "",
    }
    assert '"year":2000}' in reply.text
    assert client.get("/v1/item", params={"id": "deep:1.png#0"}).json() == reply.json()
    assert str(root) not in reply.text


def test_a_new_commit_is_seen_without_a_restart(serving, index, encoder, root):
    client = serving()
    (root / "7.png").write_bytes(picture_bytes(7))
    index.commit(rows_of(encoder, root, {"7.png": "7.png"}, camera="new"))
    client.app.state.service._look_at_index()
    assert client.get("/v1/index").json()["pictures"] == 8
    where = [{"field": "camera", "comparison": "=", "value": "new"}]
    (hit,) = client.post("/v1/search", json={**RED, "where": where}).json()["hits"]
    assert hit["id"] == "7.png" and client.get("/v1/picture?id=7.png").status_code == 200
    metrics = client.get("/metrics").text
    assert 'modalloy_index_rows{modality="image"} 8.0' in metrics


def test_health_and_metrics(serving):
    client = serving()
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready"}
    client.post("/v1/search", json=RED)
    client.get("/nowhere/1")
    client.get("/nowhere/2")
    text = client.get("/metrics").text
    assert 'modalloy_requests_total{route="/v1/search",status="200"} 1.0' in text
    assert 'modalloy_requests_total{route="other",status="404"} 2.0' in text and "nowhere" not in text
    for name in ("request_seconds_count", "encode_seconds_count 1.0", "search_seconds_count 1.0", "queue 0.0"):
        assert f"modalloy_{name}" in text
    client.app.state.service.ready = False
    assert client.get("/health/live").status_code == 200
    assert "stopping" in error(client.get("/health/ready"), 503, "stopping")


def test_openapi_describes_every_route(client):
    described = client.get("/v1/openapi.json").json()
    for path in ("index", "search", "words", "item", "thumbnail", "picture"):
        assert f"/v1/{path}" in described["paths"]
    body = described["paths"]["/v1/search"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    part = body["application/json"]["schema"]["properties"]["parts"]["items"]
    assert {"text", "like", "upload", "weight"} == set(part["properties"])
    assert client.get("/docs").status_code == 404


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parts": []}, "parts"),
        ({"parts": [{}]}, "exactly one"),
        ({"parts": [{"text": "a", "like": "b"}]}, "exactly one"),
        ({"parts": [{"text": "a", "url": "http://127.0.0.1/"}]}, "url"),
        ({"parts": [{"text": " "}]}, "visible"),
        ({"parts": [{"text": "a" * 2001}]}, "2000"),
        ({"parts": [{"text": "a", "weight": 0}]}, "weight"),
        ({"parts": [{"text": "a", "weight": 1e9}]}, "weight"),
        ({"parts": [{"text": "a"}] * 17}, "16"),
        ({"parts": [{"like": "nowhere"}]}, "nowhere"),
        ({"parts": [{"upload": 0}]}, "uploads [0]"),
        ({"parts": [{"upload": -1}]}, "upload"),
        ({"k": 0}, "k"),
        ({"k": 201}, "200"),
        ({"k": 2.5}, "k"),
        ({"target": "sound"}, "target"),
        ({"path": "/etc/passwd"}, "path"),
        ({"where": [{"field": "nothing", "comparison": "=", "value": 1}]}, "nothing"),
        ({"where": [{"field": "width", "comparison": "=", "value": "1"}]}, "width"),
        ({"where": [{"field": "width", "comparison": "like", "value": 1}]}, "comparison"),
        ({"where": [{"field": "path", "comparison": "in", "value": "a"}]}, "in"),
        ({"rerank": "magic"}, "rerank"),
    ],
)
def test_questions_that_are_none_are_refused(client, change, said):
    assert said in error(client.post("/v1/search", json={**RED, **change}), 422)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[" * 100_000, 400),
        (b'{"parts":' * 5000 + b"1" + b"}" * 5000, 400),
        (b'{"parts": [{"text": "a", "weight": NaN}]}', 422),
        (b'{"parts": [{"text": "a", "weight": Infinity}]}', 422),
        (b'{"parts": [{"text": "a", "weight": 1e999}]}', 422),
        (b'{"parts": [{"text": "a"}], "where": [{"field": "width", "comparison": "<", "value": NaN}]}', 422),
        (b'{"parts": [{"text": "\\ud800"}]}', 400),
        (b'{"parts": [{"text": "\xff"}]}', 400),
        (b"null", 422),
        (b'{"k": ' + b"9" * 5000 + b"}", 400),
    ],
)
def test_bodies_that_are_no_questions_are_refused(client, body, status):
    error(client.post("/v1/search", content=body, headers={"Content-Type": "application/json"}), status)


def test_other_types_methods_and_routes_are_refused(client):
    assert "text/plain" in error(
        client.post("/v1/search", content=json.dumps(RED), headers={"Content-Type": "text/plain"}), 415
    )
    error(client.post("/v1/words", **form(RED, b"x")), 415)
    assert "toy-1" in error(client.post("/v1/words", json={"id": "deep:1.png", "text": "a dog"}), 422)
    assert error(client.get("/v1/search"), 405) == (
        "this address takes POST alone; the interface is described at /v1/openapi.json."
    )
    for nowhere in ("/v1/nothing", "/v2/index"):
        assert error(client.get(nowhere), 404, "not_found") == (
            "there is nothing at this address; the interface is described at /v1/openapi.json."
        )
    assert error(client.get("/v1/item"), 422) == "id: expected a value, got none."
    error(client.get("/v1/item?id=nowhere"), 404)


def test_words_are_found_by_the_view(client, searcher, monkeypatch):
    found = FoundWords([WordMap("dog", torch.tensor([[0.25, 0.75]]), 0.5)], (1, 2), "toy")
    asked = []
    monkeypatch.setattr(type(searcher.view), "words", lambda _, *given: asked.append(given) or found)
    reply = client.post("/v1/words", json={"id": "deep:1.png", "text": "a dog"}).json()
    assert reply.pop("words") == [{"word": "dog", "score": 0.5, "seen": True, "weights": [[0.25, 0.75]]}]
    assert reply == {"rows": 1, "columns": 2, "encoder": "toy"} and asked == [("deep:1.png", "a dog")]
    error(client.post("/v1/words", json={"id": "deep:1.png"}), 422)


@pytest.mark.parametrize("harm", ["gone", "changed", "a link"])
def test_a_file_without_words_is_told_without_its_folder(serving, root, harm):
    client, file = serving(), root / "deep" / "1.png"
    if harm == "changed":
        file.write_bytes(b"changed")
    else:
        file.unlink()
    if harm == "a link":
        file.symlink_to(root.parent / "secret.png")
    told = error(client.post("/v1/words", json={"id": "deep:1.png", "text": "a dog"}), 404, "not_found")
    assert told == "the file of 'deep:1.png' isn't there or isn't the indexed one any more."


def test_a_failure_is_told_without_its_trace(client, searcher, monkeypatch, caplog, root):
    def fail(*_):
        raise RuntimeError(f"at {root}/cat.png")

    monkeypatch.setattr(type(searcher.view), "answer", fail)
    reply = client.post("/v1/search", json=RED)
    assert str(root) not in error(reply, 500, "internal") and "Traceback" not in reply.text
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert str(root) in caplog.text


def test_an_index_that_cannot_be_read_is_no_clients_fault(client, searcher, monkeypatch, root):
    from modalloy.errors import CheckpointError, ConfigError

    def fail(*_):
        raise CheckpointError(f"{root}/index is damaged")

    monkeypatch.setattr(type(searcher.view), "answer", fail)
    assert "damaged" not in error(client.post("/v1/search", json=RED), 500, "internal")

    def mistaken(*_):
        raise ConfigError(f"no reranker in {root}/run")

    monkeypatch.setattr(type(searcher.view), "answer", mistaken)
    assert error(client.post("/v1/search", json=RED), 422) == "no reranker in run"
