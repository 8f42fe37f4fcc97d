"""Where a Qdrant cluster's index is, and how it is laid out and asked."""

from dataclasses import dataclass, fields
from urllib.parse import parse_qsl, urlsplit

from modalloy.errors import ConfigError

API_KEY = "QDRANT_API_KEY"
"""The environment's variable that holds the cluster's key, if it wants one."""

_SCHEMES = {"qdrant": "http", "qdrant+http": "http", "qdrant+https": "https"}
_PORTS = {"http": 6333, "https": 443}


@dataclass(frozen=True)
class QdrantConfig:
    """How an index is laid out over a cluster, and how it is asked; the defaults suit up to 10^8 pictures.

    Whole vectors lie on disk; searches go through a graph over copies of eight bits a number, which are in memory.
    """

    shards: int = 1
    """Parts that the rows are divided into, over the cluster's machines; it can't be changed later."""
    replicas: int = 1
    """Copies of each part; two or more survive the loss of a machine."""
    links: int = 16
    """Of a vector in the graph (HNSW's m)."""
    build_candidates: int = 128
    """Considered for these links (ef_construct)."""
    candidates: int = 128
    """That a search keeps (ef)."""
    oversampling: float = 3.0
    """How many times as many as are to be found are compared by their whole vectors."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) >= 1:
                raise ConfigError(f"{field.name} must be at least 1, got {getattr(self, field.name)}.")


@dataclass(frozen=True, slots=True)
class QdrantLocation:
    """A place in a cluster: "qdrant://HOST:PORT/COLLECTION", or "qdrant+https://..." for an encrypted connection.

    Settings of `QdrantConfig` may follow, such as "?shards=6&replicas=2".

    >>> place = QdrantLocation.parse("qdrant+https://cluster.example.org/pictures?shards=6")
    >>> place.url, place.collection, place.config.shards
    ('https://cluster.example.org:443', 'pictures', 6)
    """

    url: str
    """Of the cluster, or of one of its machines."""
    collection: str
    """What the names of the index's collections begin with."""
    config: QdrantConfig
    """How it is laid out and asked."""

    @classmethod
    def parse(cls, location: str) -> "QdrantLocation":
        """Reads a location.

        Raises:
            ConfigError: it isn't one.
        """
        try:
            parts = urlsplit(location)
            scheme, host, port = _SCHEMES[parts.scheme], parts.hostname, parts.port
        except (KeyError, ValueError):
            raise _unreadable(location) from None
        collection = parts.path.strip("/")
        if not host or parts.username or not collection or not collection.replace("-", "_").isidentifier():
            raise _unreadable(location)
        host = f"[{host}]" if ":" in host else host
        return cls(f"{scheme}://{host}:{port or _PORTS[scheme]}", collection, _config(parts.query, location))

    @property
    def is_private(self) -> bool:
        """Whether nobody between here and there can read what is sent."""
        return self.url.startswith("https://") or urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")


def is_qdrant(location: str) -> bool:
    """Whether a location is in a Qdrant cluster.

    >>> is_qdrant("qdrant://localhost/pictures"), is_qdrant("s3://bucket/index")
    (True, False)
    """
    return location.partition("://")[0] in _SCHEMES


def _config(query: str, location: str) -> QdrantConfig:
    whole = {field.name: isinstance(field.default, int) for field in fields(QdrantConfig)}
    try:
        given = parse_qsl(query, strict_parsing=True) if query else []
        return QdrantConfig(**{name: int(value) if whole[name] else float(value) for name, value in given})  # type: ignore[arg-type]
    except (KeyError, ValueError):
        raise ConfigError(f"{location}: after '?' stand {', '.join(whole)} and their numbers.") from None


def _unreadable(location: str) -> ConfigError:
    return ConfigError(
        f"a place in a Qdrant cluster is qdrant://HOST:PORT/COLLECTION, or qdrant+https://HOST/COLLECTION, the "
        f"collection named by letters, digits, '_' and '-', got {location!r}; a key comes in {API_KEY}."
    )
