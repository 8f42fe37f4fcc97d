import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from serve.service_toys import error, picture_bytes

QUESTION = {"parts": [{"text": "a"}], "k": 3}


@pytest.fixture
def held(searcher, monkeypatch):
    """Searches wait in the view until `held` is set; `held.entered` is set once one does."""
    held, view = threading.Event(), type(searcher.view)
    held.entered = threading.Event()
    answer = view.answer

    def wait(self, *given):
        held.entered.set()
        assert held.wait(20)
        return answer(self, *given)

    monkeypatch.setattr(view, "answer", wait)
    yield held
    held.set()


def test_a_full_queue_refuses_at_once_and_recovers(serving, held):
    client = serving(queue=2)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(client.post, "/v1/search", json=QUESTION) for _ in range(2)]
        assert held.entered.wait(20)
        while "modalloy_queue 2.0" not in client.get("/metrics").text:
            pass
        refused = client.post("/v1/search", json=QUESTION)
        assert "2 searches" in error(refused, 503, "busy") and refused.headers["retry-after"] == "1"
        assert client.get("/v1/index").status_code == client.get("/health/live").status_code == 200
        held.set()
        assert [each.result().status_code for each in asked] == [200, 200]
    assert client.post("/v1/search", json=QUESTION).status_code == 200
    text = client.get("/metrics").text
    assert 'modalloy_refused_total{reason="full"} 1.0' in text and "modalloy_queue 0.0" in text


def test_a_search_that_takes_too_long_is_given_up(serving, held):
    client = serving(timeout_s=0.2)
    late = client.post("/v1/search", json=QUESTION)
    assert "0.2 s" in error(late, 503, "timeout") and late.headers["retry-after"] == "1"
    held.set()
    assert 'modalloy_refused_total{reason="timeout"} 1.0' in client.get("/metrics").text


def test_few_searches_hold_decoded_pictures(serving, held):
    client = serving(decodes=1)
    form = {
        "data": {"query": json.dumps({"parts": [{"upload": 0}]})},
        "files": [("pictures", ("a.png", picture_bytes()))],
    }
    decoded = []
    from modalloy.serve import service

    decode = service.decode_uploads
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(service, "decode_uploads", lambda *given: decoded.append(1) or decode(*given))
        asked = [pool.submit(client.post, "/v1/search", **form) for _ in range(2)]
        assert held.entered.wait(20)
        # One of words isn't held up.
        words = pool.submit(client.get, "/v1/index")
        assert words.result if len(decoded) == 1 else pytest.fail("both were decoded")
        held.set()
        assert [each.result().status_code for each in asked] == [200, 200] and len(decoded) == 2


def test_concurrent_answers_equal_single_ones(client, encoder):
    questions = [{"parts": [{"text": f"text {number}"}], "k": 7} for number in range(12)]
    alone = [client.post("/v1/search", json=question).json()["hits"] for question in questions]
    encoder.calls.clear()
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda question: client.post("/v1/search", json=question).json()["hits"], questions))
    assert [[hit["id"] for hit in hits] for hits in together] == [[hit["id"] for hit in hits] for hits in alone]
    for one, other in zip(together, alone, strict=True):
        assert [hit["score"] for hit in one] == pytest.approx([hit["score"] for hit in other], abs=1e-6)
    assert sum(encoder.calls) == 12
