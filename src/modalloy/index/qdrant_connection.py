"""Reaching a Qdrant cluster."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from modalloy.errors import ConfigError, DataError, one_line
from modalloy.index.qdrant_config import API_KEY, QdrantLocation

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

# Writes on condition of what is there came with 1.16, parts of texts with 1.20.
_OLDEST = (1, 20)
_SECONDS = 60


def connect(place: QdrantLocation) -> "QdrantClient":
    """A client of a cluster.

    Raises:
        ConfigError: qdrant-client isn't installed, the cluster is too old, or a key would be sent for all to read.
        DataError: the cluster doesn't answer.
    """
    try:
        from qdrant_client import QdrantClient
    except ImportError:
        raise ConfigError(
            "An index in a Qdrant cluster needs qdrant-client, which isn't installed: pip install 'modalloy[qdrant]'."
        ) from None
    key = os.environ.get(API_KEY)
    if key and not place.is_private:
        raise ConfigError(f"{place.url} would get {API_KEY} unencrypted; use qdrant+https://, or unset {API_KEY}.")
    # The check of versions is ours, since theirs only warns.
    client = QdrantClient(url=place.url, api_key=key, timeout=_SECONDS, check_compatibility=False)
    with reaching(place.url):
        version = client.info().version
    if tuple(int(part) for part in version.split("-")[0].split(".")[:2]) < _OLDEST:
        raise ConfigError(f"{place.url} is Qdrant {version}; an index needs {'.'.join(map(str, _OLDEST))} or newer.")
    return client


@contextmanager
def reaching(location: str) -> Iterator[None]:
    """Turns what the client says of a cluster that refuses or doesn't answer into an error of ours."""
    from qdrant_client.http.exceptions import ApiException

    try:
        yield
    except ApiException as error:
        raise DataError(f"{location}: the Qdrant cluster doesn't answer as it should ({one_line(error)}).") from error
