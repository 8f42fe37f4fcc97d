import pytest
from fastapi import HTTPException

from modalloy.errors import CheckpointError, ConfigError, DataError, FeatureError, ImageError
from modalloy.serve.errors import Refusal, refusal_of, without_folders


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("/home/me/a.png is cut off", "a.png is cut off"),
        ("at '/home/me/a.png', twice", "at 'a.png', twice"),
        ("(/a/b/c)", "(c)"),
        ("C:\\Users\\me\\a.png is cut off", "a.png is cut off"),
        ("C:/Users/me/a.png", "a.png"),
        ("\\\\server\\share\\a.png", "a.png"),
        ("file:///home/me/a.png", "a.png"),
        ("alloy:/home/me/run has none", "alloy:run has none"),
        ("this and/or that, 1/2, image/jpeg, a path/in/it", "this and/or that, 1/2, image/jpeg, a path/in/it"),
        ("give https://example.org/a/b", "give https://example.org/a/b"),
    ],
)
def test_a_message_tells_no_folder(message, told):
    assert without_folders(message) == told


def test_what_a_client_can_mend_is_told():
    for error in (ConfigError("a"), DataError("a"), ImageError("a")):
        assert refusal_of(error).status_code == 422
    for error in (CheckpointError("a"), FeatureError("a"), OSError("a"), RuntimeError("a")):
        assert refusal_of(error) is None
    assert refusal_of(HTTPException(404, "gone")).kind == "not_found"
    assert refusal_of(Refusal(503, "full", "busy")).kind == "busy"
