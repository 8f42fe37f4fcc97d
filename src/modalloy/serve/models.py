"""What requests and answers of the HTTP interface hold, version 1; anything else in a request is refused."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StrictBool,
    StrictFloat,
    StrictStr,
    ValidationError,
    WrapValidator,
    model_validator,
)

from modalloy.encoders import Modality
from modalloy.index import Condition
from modalloy.index.condition import Comparison

MAX_WEIGHT = 100.0
_Text = Annotated[str, Field(min_length=1, max_length=2000)]
_Id = Annotated[str, Field(min_length=1, max_length=1000)]
_Weight = Annotated[FiniteFloat, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)]
_Value = StrictStr | StrictBool | Annotated[StrictFloat, Field(allow_inf_nan=False)]
_Metadata = dict[str, str | int | float | bool | None]


def _value(given: Any, check: Callable[[Any], Any]) -> Any:
    # Otherwise there would be one error for each type that it isn't of.
    try:
        return check(given)
    except ValidationError:
        raise ValueError("a text, a finite number, true or false, or a list of at most 1000 of these") from None


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PartBody(_Request):
    """One part of a question: exactly one of `text`, `like` and `upload`."""

    text: _Text | None = Field(None, description="Words.")
    like: _Id | None = Field(None, description="The id of a picture or caption in the index.")
    upload: Annotated[int, Field(ge=0)] | None = Field(None, description="The number of an uploaded picture, from 0.")
    weight: _Weight = Field(1.0, description="How much it counts; below 0 it pushes away.")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if sum(each is not None for each in (self.text, self.like, self.upload)) != 1:
            raise ValueError("exactly one of text, like and upload")
        return self


class ConditionBody(_Request):
    """What an answer must satisfy."""

    field: Annotated[str, Field(max_length=200)]
    comparison: Comparison
    value: Annotated[_Value | Annotated[list[_Value], Field(max_length=1000)], WrapValidator(_value)]

    def condition(self) -> Condition:
        """The same for the index."""
        value = tuple(self.value) if isinstance(self.value, list) else self.value
        return Condition(self.field, self.comparison, value)


class SearchBody(_Request):
    """A question."""

    parts: Annotated[list[PartBody], Field(min_length=1, max_length=16)]
    target: Modality = "image"
    k: Annotated[int, Field(ge=1)] = 20
    where: Annotated[list[ConditionBody], Field(max_length=32)] = []
    rerank: Literal["local", "itm"] | None = None
    explain: bool = False
    exact: bool = False
    by: Annotated[str, Field(max_length=1000)] | None = None


class WordsBody(_Request):
    """A text to be found in a picture."""

    id: _Id
    text: _Text


class HitAnswer(BaseModel):
    """One answer to a question; see `modalloy.search.Hit`."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    picture_id: str
    score: float
    standard_score: float
    rerank_score: float | None
    captions: list[str]
    width: int | None
    height: int | None
    metadata: _Metadata
    contributions: dict[str, float] | None
    part_contributions: list[float] | None


class SearchAnswer(BaseModel):
    """The answers to a question, best first; see `modalloy.search.Answer`."""

    model_config = ConfigDict(from_attributes=True)

    hits: list[HitAnswer]
    searched: int
    version: int
    milliseconds: dict[str, float]


class IndexAnswer(BaseModel):
    """What there is to search."""

    pictures: int
    captions: int
    encoder: str
    version: int
    generation: int
    fields: dict[str, str]
    rerankers: list[str]
    inputs: list[str]
    words: bool
    local_files: bool
    k_most: int


class ItemAnswer(BaseModel):
    """What the index knows of a picture."""

    id: str
    captions: list[str]
    metadata: _Metadata
    width: int | None
    height: int | None
    split: str | None
    source: str | None


class WordAnswer(BaseModel):
    """Where a word is found in a picture."""

    word: str
    score: float
    seen: bool = Field(description="Whether a picture can show it, unlike an article, in English.")
    weights: list[list[float]]


class WordsAnswer(BaseModel):
    """Where the words of a text are found, on a grid over the picture's largest centred crop of the grid's shape."""

    rows: int
    columns: int
    words: list[WordAnswer]
    encoder: str


class Error(BaseModel):
    """Why there is no answer."""

    kind: str
    message: str


class ErrorAnswer(BaseModel):
    """Every answer that isn't one."""

    error: Error
