"""Whatever is sent, the answer is an answer or an error in the service's form, and never the service's failure."""

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])

LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
ANY = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


def or_any(strategy):
    return strategy | ANY


PART = st.fixed_dictionaries(
    {},
    optional={
        "text": or_any(st.text(min_size=1, max_size=5)),
        "like": or_any(st.sampled_from(["deep:1.png", "deep:1.png#0", "nowhere"])),
        "upload": or_any(st.integers(0, 2)),
        "weight": or_any(st.floats(-100, 100)),
    },
)
CONDITION = st.fixed_dictionaries(
    {
        "field": or_any(st.sampled_from(["camera", "year", "width", "id", "path", "nothing"])),
        "comparison": or_any(st.sampled_from(["=", "!=", "<", ">=", "in", "contains"])),
        "value": or_any(st.lists(LEAF, max_size=3)),
    }
)
QUESTION = st.fixed_dictionaries(
    {"parts": or_any(st.lists(or_any(PART), min_size=1, max_size=3))},
    optional={
        "k": or_any(st.integers(1, 5)),
        "target": or_any(st.sampled_from(["image", "text"])),
        "where": or_any(st.lists(or_any(CONDITION), max_size=2)),
        "rerank": or_any(st.sampled_from(["local", "itm"])),
        "explain": ANY,
        "exact": ANY,
        "by": or_any(st.text(max_size=3)),
    },
)


def is_answered(reply):
    assert reply.status_code < 500, reply.text
    assert reply.status_code == 200 or set(reply.json()["error"]) == {"kind", "message"}


@FEW
@given(QUESTION | ANY)
def test_json(client, question):
    is_answered(client.post("/v1/search", content=json.dumps(question), headers={"Content-Type": "application/json"}))


@FEW
@given(st.binary(max_size=200), st.sampled_from(["application/json", "multipart/form-data; boundary=x", "text/plain"]))
def test_bytes(client, content, kind):
    is_answered(client.post("/v1/search", content=content, headers={"Content-Type": kind}))


@FEW
@given(st.sampled_from(["picture", "thumbnail", "item"]), st.text(max_size=20))
def test_ids(client, route, id):
    is_answered(client.get(f"/v1/{route}", params={"id": id.encode("utf-8", "surrogatepass")}))


@FEW
@given(st.binary(max_size=300))
def test_pictures(client, content):
    query = json.dumps({"parts": [{"upload": 0}]})
    is_answered(client.post("/v1/search", data={"query": query}, files=[("pictures", ("a", content))]))
