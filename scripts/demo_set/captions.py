"""From an entry's title, description and keywords to clean English captions."""

import html
import re
from collections import Counter
from collections.abc import Collection, Iterable

from demo_set import word_lists
from demo_set.metadata import Work

_URL_OR_EMAIL = re.compile(r"<?\b(?:https?://|www\.)\S+|\S+@\S+")
_CREDIT = re.compile(
    r"^(?:(?:vector(?:ized)?\s+)?clip\s?arts?|svg)\s+by\s+[\w.' ]+?\s+-\s+|"
    r"\b(?:various\s+)?clip\s?arts?\b|\bopenclipart\b|^svg\s|\.svg$",
    re.IGNORECASE,
)
_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")
_NUMBERING = re.compile(
    r"\s*\(\d+\)\s*$|[\s#_-]*(?:\bno\.?\s*)?(?<![\d.])\d+\s*$|^(?:0\d+\s*|\d+\s*[-._:]\s*)(?=\D)|\b0\d\b|\bv\.?\s?\d+(?:\.\d+)*\b",
    re.IGNORECASE,
)
_BLACK_AND_WHITE = re.compile(r"\(?\b(?:b\s?(?:and|&|n|/)?\s?w|b/?n)\b\)?", re.IGNORECASE)
# A sentence with one of these is about how the file was made or may be used, not about what it shows.
_BOILERPLATE = re.compile(
    r"inkscape|sodipodi|illustrator|created? (?:with|in|by)|made (?:with|in|by)|convert|auto-?trac|tracing|"
    r"trace tool|vectori[sz]|public domain|copyright|licen[cs]|clip\s?art|\bsvg\b|\bpng\b|\beps\b|bitmap|"
    r"website|drawn by|author|thank|enjoy|derivative|submi|release|data from|based on|taken from|please|"
    r"feel free|hash\(|tutorial|ideal for|xml|derived|use the|looks? (?:nice|best|good)|\bmy\b|\bi\b|"
    r"\bi'(?:m|ve)\b|openclip|easily|you can|suitable|version|original",
    re.IGNORECASE,
)
_MAX_WORDS = 40


def words_of(text: str) -> list[str]:
    """The words of `text`, lower-cased.

    >>> words_of("Copper the Beagle's bowl (2)")
    ['copper', 'the', "beagle's", 'bowl']
    """
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.replace("\u2019", "'").lower())


def clean_title(title: str) -> str:
    """A title as an English phrase: without credits, numbering, file suffix and CamelCase.

    >>> clean_title("AfricanDrum#2"), clean_title("Clipart by Nicu Buculei - pear")
    ('African Drum', 'pear')
    >>> clean_title("Cherry Pie (B and W)")
    'Cherry Pie in black and white'
    """
    text = _URL_OR_EMAIL.sub(" ", html.unescape(html.unescape(title)))
    text = _CREDIT.sub(" ", text.replace("_", " ").strip()).partition("|")[0]
    text = _CAMEL_CASE.sub(" ", text)
    black_and_white = _BLACK_AND_WHITE.search(text) is not None
    text = _NUMBERING.sub("", _BLACK_AND_WHITE.sub(" ", text).strip())
    text = _tidy(text)
    if " " not in text:
        text = re.sub(r"(?<=[a-z]{3})-(?=[A-Za-z]{2})", " ", text)
    return f"{text} in black and white" if black_and_white and text else text


def title_from_path(work: Work) -> str:
    """The file's own name as a phrase, without its author: the only individual words of a series.

    >>> title_from_path(Work("food/apple_wedge_gerald_g._01", "R16 sibmission", "", (), "Gerald G.", ""))
    'apple wedge'
    """
    name = work.path.rpartition("/")[2]
    kept: list[str] = []
    for token in re.split(r"[_\s]+", name):
        if kept and _names_author(token.lower(), work.author):
            break
        kept.append(token)
    return clean_title(" ".join(token for token in kept if not re.fullmatch(r"[A-Za-z]|v?[\d.]+", token)))


def is_series_title(work: Work, times: int) -> bool:
    """Whether a title that `times` entries share isn't about this one: no word of it is in the file name."""
    if times < 3 and not re.search(r"clip\s?art|icons|submis|sibmis", work.title, re.IGNORECASE):
        return False
    name = work.path.rpartition("/")[2].lower()
    tokens = [token for token in re.split(r"[^a-z]+", name) if len(token) >= 3]
    return not any(
        word in name or any(word.startswith(token) for token in tokens)
        for word in words_of(clean_title(work.title))
        if len(word) >= 3
    )


def individual_title(work: Work, title_counts: Counter[str], english: Collection[str]) -> str:
    """The cleaned title; for a series that shares one title, the file's own name instead."""
    title = clean_title(work.title)
    if not title or is_series_title(work, title_counts[work.title]):
        title = title_from_path(work)
    return split_compounds(_without_signature(title, work.author), english)


def split_compounds(text: str, english: Collection[str]) -> str:
    """`text` with unknown words that are two known ones written apart.

    >>> split_compounds("Floppydisk and sunset", {"floppy", "disk", "sunset"})
    'Floppy disk and sunset'
    """

    def apart(match: re.Match[str]) -> str:
        word = match.group()
        if _is_english(word.lower(), english):
            return word
        for cut in range(4, len(word) - 3):
            if word[:cut].lower() in english and word[cut:].lower() in english:
                return f"{word[:cut]} {word[cut:]}"
        return word

    return re.sub(r"[A-Za-z]{8,}", apart, text)


def english_share(words: Iterable[str], english: Collection[str]) -> float:
    """The share of words of three or more letters that `english` holds; 0 where there is none.

    >>> english_share(["red", "gallo", "of"], {"red"})
    0.5
    """
    long_words = [word for word in words if len(word) >= 3]
    return sum(_is_english(word, english) for word in long_words) / max(len(long_words), 1)


def is_english(text: str, english: Collection[str], least: float = 0.75) -> bool:
    """Whether `text` reads as English: ASCII letters, known words, no stop words of another language."""
    if not text.isascii():
        return False
    words = words_of(text)
    foreign = [word for word in words if word in word_lists.FOREIGN_STOP_WORDS]
    if len(foreign) >= 2 or any(word not in word_lists.AMBIGUOUS_STOP_WORDS for word in foreign):
        return False
    share = english_share(words, english)
    return share >= (0.999 if foreign else least)


def title_problem(title: str, work: Work, english: Collection[str]) -> str | None:
    """Why a picture with this title is left out, or None if the title is good."""
    words = words_of(title)
    if not any(len(word) >= 3 for word in words) or set(words) <= word_lists.MEANINGLESS or words[0] == "my":
        return "meaningless title"
    if set(words) <= set(words_of(work.author)):
        return "title is the author's name"
    keywords = {keyword.lower() for keyword in work.keywords}
    if word_lists.UNSUITABLE & {*words, *keywords, *words_of(work.description)}:
        return "unsuitable, or another's character"
    if (
        word_lists.SERIES & set(words)
        or word_lists.SERIES_KEYWORDS & keywords
        or re.search(r"icon\s?set", work.title, re.I)
    ):
        return "map, flag, icon, logo or the like"
    if not is_english(title, english):
        return "title isn't English"
    return None


def clean_description(description: str, english: Collection[str]) -> str:
    """The sentences of a description that tell of the picture; "" where none does.

    >>> clean_description("A red car. Made with Inkscape, see http://a.b", {"red", "car"})
    'A red car'
    """
    text = html.unescape(html.unescape(description))
    sentences = re.split(r"(?<=[.!?])\s+|\.{2,}|\s+-{2,}\s+", text)
    kept = [
        _tidy(sentence)
        for sentence in sentences
        if not _URL_OR_EMAIL.search(sentence) and not _BOILERPLATE.search(sentence)
    ]
    text = _tidy(". ".join(sentence for sentence in kept if sentence))
    text = re.sub(r"^(?:this|here|it) is (?=an? |the )", "", text, flags=re.IGNORECASE)
    black_and_white = _BLACK_AND_WHITE.search(text) is not None
    if black_and_white:
        text = f"{_tidy(_BLACK_AND_WHITE.sub(' ', text))} in black and white"
    words = words_of(text)
    if len(words) < 2 or len(words) > _MAX_WORDS or not is_english(text, english):
        return ""
    return text[0].upper() + text[1:]


def clean_keywords(keywords: Iterable[str], author: str, english: Collection[str], most: int = 6) -> list[str]:
    """The keywords that tell of the picture, without repeats.

    >>> clean_keywords(["", "hash(0x8a)", "food", "icecream", "foods"], "", {"food", "ice", "cream"})
    ['food', 'ice cream']
    """
    kept: dict[str, str] = {}
    for raw in keywords:
        keyword = _tidy(html.unescape(raw).lower())
        keyword = word_lists.KEYWORD_SPELLING.get(keyword, keyword).removesuffix(" symbol")
        words = words_of(keyword)
        if not words or not re.fullmatch(r"[a-z' -]+", keyword) or set(words) <= word_lists.KEYWORD_JUNK:
            continue
        if set(words) <= set(words_of(author)) or len(words) > 3 or not is_english(keyword, english, 1.0):
            continue
        kept.setdefault(keyword.rstrip("s"), keyword)
    return list(kept.values())[:most]


def keyword_phrase(title: str, keywords: list[str], shared: bool = False) -> str:
    """Keywords as one caption; the title goes in front where they alone can't tell the picture from others.

    That is where there is only one, where all are names of the library's folders, or where pictures of other
    titles have the same (`shared`).

    >>> keyword_phrase("Lime wedge", ["food", "plant"]), keyword_phrase("Lime wedge", ["citrus", "fruit"])
    ('lime wedge, food, plant', 'citrus, fruit')
    """
    if not keywords:
        return ""
    if len(keywords) >= 2 and not shared and not set(keywords) <= word_lists.GENERIC_KEYWORDS:
        return ", ".join(keywords)
    title_words = {word.removesuffix("s") for word in words_of(title)}
    new = [word for word in keywords if not {part.removesuffix("s") for part in words_of(word)} <= title_words]
    return ", ".join([title.lower(), *new]) if new else ""


def captions_of(title: str, description: str, keywords: str) -> list[str]:
    """The picture's captions, the title first; none is empty or repeats another.

    >>> captions_of("lime wedge", "A lime wedge", "citrus, fruit")
    ['Lime wedge', 'citrus, fruit']
    """
    captions: dict[tuple[str, ...], str] = {}
    for text in (title[0].upper() + title[1:], description, keywords):
        key = tuple(word for word in words_of(text) if word not in ("a", "an", "the"))
        if key:
            captions.setdefault(key, text)
    return list(captions.values())


def foreign_authors(titles: Iterable[tuple[str, str]], english: Collection[str], least: float = 0.5) -> set[str]:
    """Authors who title in another language, from (author, title) pairs: few of their words are English.

    A single title can pass for English by chance ("Rosa", "Cane"); an author's titles together can't.
    """
    words: dict[str, set[str]] = {}
    for author, title in titles:
        words.setdefault(author, set()).update(words_of(title))
    return {author for author, own in words.items() if author and len(own) >= 5 and english_share(own, english) < least}


def _is_english(word: str, english: Collection[str]) -> bool:
    if word in word_lists.BRITISH:
        return True
    candidates = (word, word.removesuffix("'s"), word.removesuffix("s"), word.removesuffix("es"))
    return any(candidate in english for candidate in candidates)


def _without_signature(title: str, author: str) -> str:
    """`title` without its author's name or initials at the end ("help-books-aj")."""
    words = title.split()
    names = {"".join(part) for part in (words_of(author), *([name] for name in words_of(author)))}
    names |= {"".join(name[0] for name in words_of(author))}
    while len(words) > 1 and words[-1].strip(".()-").lower() in names:
        words.pop()
    return " ".join(words).rstrip(" -,(")


def _names_author(token: str, author: str) -> bool:
    token = token.strip(".-")
    # File names cut an author's name short: "gerald_g", "architetto_franc".
    names = [word for word in words_of(author) if len(word) >= 3]
    return len(token) >= 3 and any(name.startswith(token) or token.startswith(name) for name in names)


def _tidy(text: str) -> str:
    text = re.sub(r"\(\s*\)|\[\s*\]|\"", " ", text)
    text = re.sub(r"\s-(?=\w)|(?<=\w)-\s", " - ", text)
    return re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split())).strip(" .,;:-#|/_\"'")
