import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from index.memory_index import MemoryIndex
from PIL import Image
from search.indexes import rows_of
from toy_encoders import Toy

from modalloy.errors import ConfigError
from modalloy.fusion import Alloy, InputShape, Mixture, Rotated, ScoreFusion, TowerConfig, TowerFuser
from modalloy.index import Condition, Head
from modalloy.search import Part, Query, Searcher, part_ranking
from modalloy.search.explanation import contributions, input_names, vector_parts

TOYS = [Toy(0), Toy(1)]
SHAPES = [InputShape(each.dim("image"), each.width("image"), each.width("text")) for each in TOYS]


def tower(*weighted: int) -> TowerFuser:
    torch.manual_seed(0)
    config = TowerConfig("concat-linear", start="random", output_dim=5, weighted_inputs=weighted)
    return TowerFuser(config, SHAPES).eval()


FUSERS = {
    "weighted": (tower(1), {"fused", "toy-1"}),
    "both weighted": (tower(1, 0), {"fused", "toy-0", "toy-1"}),
    "cosines": (ScoreFusion([1.0, 3.0], SHAPES), {"toy-0", "toy-1"}),
    "mixture": (
        Mixture([tower(), tower(0)], [0, 1], [1.0, 2.0, 3.0, 4.0], SHAPES),
        {"fused 0", "fused 1", "toy-0", "toy-1"},
    ),
    "one member": (Mixture([tower(1), tower()], [0], [1.0, 0.0, 3.0], SHAPES), {"fused", "toy-0", "toy-1"}),
    "member alone": (Mixture([tower(1)], [], [1.0], SHAPES), {"fused", "toy-1"}),
}


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (1, 1), (number, 0, 0))


def index_of(alloy: Alloy, count: int = 12) -> MemoryIndex:
    prints = {modality: alloy.fingerprint(modality) for modality in alloy.modalities}
    index = MemoryIndex(Head("alloy", prints, alloy.dim("image")))
    vectors = alloy.encode_images([picture(number) for number in range(count)]).embedding
    index.commit(rows_of({f"p{number}": vector for number, vector in enumerate(vectors)}))
    return index


@pytest.mark.parametrize("name", FUSERS)
def test_parts_cover_the_vector_once(name):
    fuser, expected = FUSERS[name]
    parts = vector_parts(Alloy(TOYS, fuser))
    assert set(parts) == expected
    places = sorted(place for where in parts.values() for each in where for place in range(fuser.dim)[each])
    assert places == list(range(fuser.dim))


@pytest.mark.parametrize("name", FUSERS)
def test_an_inputs_part_is_its_own_cosine_by_its_weight(name):
    alloy = Alloy(TOYS, FUSERS[name][0])
    vectors, question = alloy.encode_images([picture(n) for n in range(5)]).embedding, alloy.encode_texts(["3 x"])
    found = contributions(question.embedding[0], vectors, vector_parts(alloy))
    cosines = (
        TOYS[1].encode_images([picture(n) for n in range(5)]).embedding @ TOYS[1].encode_texts(["3 x"]).embedding[0]
    )
    added = torch.tensor([each["toy-1"] for each in found])
    weight = added / cosines
    assert torch.allclose(weight, weight[:1].expand(5), atol=1e-4) and 0 < float(weight[0]) < 1


@given(
    name=st.sampled_from(list(FUSERS)),
    weights=st.lists(st.sampled_from([0.3, 1.0, -0.5]), min_size=1, max_size=3),
    numbers=st.lists(st.integers(0, 40), min_size=3, max_size=3),
)
@settings(max_examples=20)
def test_contributions_add_up_to_the_score(name, weights, numbers):
    alloy = Alloy(TOYS, FUSERS[name][0])
    searcher = Searcher(index_of(alloy), alloy)
    parts = tuple(Part(text=f"{number} words", weight=w) for number, w in zip(numbers, weights, strict=False))
    for hit in searcher.search(Query(parts, k=4, explain=True)).hits:
        assert sum(hit.contributions.values()) == pytest.approx(hit.score, abs=1e-5)
        assert sum(hit.part_contributions) == pytest.approx(hit.score, abs=1e-5)
        assert len(hit.part_contributions) == len(weights)


@pytest.mark.parametrize("fuser", [tower(), Rotated(tower(1), torch.eye(tower(1).dim))])
def test_what_cannot_be_taken_apart_has_no_contributions(fuser):
    alloy = Alloy(TOYS, fuser)
    assert vector_parts(alloy) is None and vector_parts(TOYS[0]) is None and input_names(TOYS[0]) == []
    searcher = Searcher(index_of(alloy), alloy)
    hit = searcher.search(Query((Part(text="3 x"),), k=1, explain=True)).hits[0]
    assert hit.contributions is None and hit.part_contributions == pytest.approx((hit.score,), abs=1e-6)
    with pytest.raises(ConfigError, match="can't rank by 'toy-1': this encoder's vectors can't be taken apart"):
        searcher.search(Query((Part(text="3 x"),), by="toy-1"))


def test_inputs_of_one_name_are_told_apart():
    twins = [Toy(0), Toy(0)]
    shapes = [SHAPES[0], SHAPES[0]]
    assert input_names(Alloy(twins, ScoreFusion([1.0, 1.0], shapes))) == ["toy-0", "toy-0 (2)"]


class TestByOneInput:
    alloy = Alloy(TOYS, FUSERS["mixture"][0])

    def test_the_order_is_that_of_the_inputs_own_cosines(self):
        searcher = Searcher(index_of(self.alloy), self.alloy)
        hits = searcher.search(Query((Part(text="3 x"),), by="toy-1", k=12)).hits
        pictures = TOYS[1].encode_images([picture(number) for number in range(12)]).embedding.numpy()
        cosines = pictures @ TOYS[1].encode_texts(["3 x"]).embedding[0].numpy()
        assert [hit.id for hit in hits] == [f"p{number}" for number in np.argsort(-cosines)]
        standard = (np.sort(cosines)[::-1] - cosines.mean()) / cosines.std()
        assert [hit.standard_score for hit in hits] == pytest.approx(standard.tolist(), abs=1e-3)

    def test_conditions_hold_and_the_item_itself_is_left_out(self):
        searcher = Searcher(index_of(self.alloy), self.alloy)
        where = (Condition("id", "in", ("p1", "p4", "p5")),)
        hits = searcher.search(Query((Part(like="p4"),), by="fused 0", where=where)).hits
        assert {hit.id for hit in hits} == {"p1", "p5"}

    def test_an_unknown_input_is_named(self):
        searcher = Searcher(index_of(self.alloy), self.alloy)
        with pytest.raises(ConfigError, match="can't rank by 'clip': the vectors hold 'fused 0', "):
            searcher.search(Query((Part(text="3 x"),), by="clip"))

    def test_too_many_items_are_refused(self, monkeypatch):
        monkeypatch.setattr(part_ranking, "MOST", 11)
        searcher = Searcher(index_of(self.alloy), self.alloy)
        with pytest.raises(ConfigError, match="looks at each of 12 items, at most 11"):
            searcher.search(Query((Part(text="3 x"),), by="toy-1"))
