from hypothesis import given
from hypothesis import strategies as st

from modalloy.encoders.hub.captions import ALBEF_CAPTIONS, BLIP_CAPTIONS, CHINESE_CLIP_CAPTIONS, CaptionRule


def test_albef_takes_punctuation_out() -> None:
    assert ALBEF_CAPTIONS("Two <person>s: a well-known/old man's dog, running...") == (
        "two persons a well known old mans dog running"
    )


def test_blip_puts_spaces_in_and_keeps_commas_and_hyphens() -> None:
    assert BLIP_CAPTIONS("A well-known man's dog, running...fast!") == "a well-known man's dog, running fast"


def test_chinese_clip_straightens_quotes() -> None:
    assert CHINESE_CLIP_CAPTIONS("“Ab” 的") == '"ab" 的'


def test_words_are_cut() -> None:
    assert ALBEF_CAPTIONS("Dog " * 40) == " ".join(["dog"] * 30)
    assert CaptionRule(words=2)("a b c") == "a b"


@given(st.text(max_size=60))
def test_the_rules_are_stable(caption: str) -> None:
    for rule in (ALBEF_CAPTIONS, BLIP_CAPTIONS, CHINESE_CLIP_CAPTIONS):
        assert rule(rule(caption)).split() == rule(caption).split()
        assert len(rule(caption).split(" ")) <= (rule.words or 100)
