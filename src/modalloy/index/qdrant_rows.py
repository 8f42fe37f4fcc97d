"""The collection of a Qdrant cluster that holds the rows of one generation, and what is done to it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from modalloy.encoders.base import MODALITIES
from modalloy.index.qdrant_config import QdrantConfig
from modalloy.index.qdrant_filter import one_of
from modalloy.index.qdrant_points import ADDED, NEVER, REMOVED, REMOVED_AT, indexed_columns
from modalloy.index.qdrant_snapshot import PAGE, in_parts
from modalloy.index.qdrant_state import State
from modalloy.index.schema import MetaKind

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models


class QdrantRows:
    """What is written to a collection of rows; nothing of it counts before a state says so.

    Args:
        client: of the cluster.
        name: of the collection.
    """

    def __init__(self, client: "QdrantClient", name: str) -> None:
        self._client, self.name = client, name

    def create(self, dim: int, config: QdrantConfig) -> None:
        """Makes the collection, instead of one that an interrupted attempt left."""
        from qdrant_client import models

        if self._client.collection_exists(self.name):
            self._client.delete_collection(self.name)
        # Not cosine, for which Qdrant would scale the vectors: an alloy's inner products are what counts.
        vector = models.VectorParams(size=dim, distance=models.Distance.DOT, on_disk=True)
        small = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
        self._client.create_collection(
            self.name,
            vectors_config={modality: vector for modality in MODALITIES},
            hnsw_config=models.HnswConfigDiff(m=config.links, ef_construct=config.build_candidates),
            quantization_config=models.ScalarQuantization(scalar=small),
            shard_number=config.shards,
            replication_factor=config.replicas,
            write_consistency_factor=config.replicas // 2 + 1,
            on_disk_payload=True,
        )
        self.index(indexed_columns({}))

    def index(self, columns: "Mapping[str, models.PayloadSchemaType | models.KeywordIndexParams]") -> None:
        """Makes conditions on columns fast."""
        for column, schema in columns.items():
            self._client.create_payload_index(self.name, column, field_schema=schema, wait=True)

    def index_new(self, metadata: Mapping[str, MetaKind], present: Mapping[str, MetaKind]) -> None:
        """Makes conditions on new fields of the metadata fast."""
        known = indexed_columns(present)
        self.index({column: how for column, how in indexed_columns(metadata).items() if column not in known})

    def add(self, points: "Sequence[models.PointStruct]") -> None:
        """Writes new points."""
        for start in range(0, len(points), PAGE):
            self._client.upsert(self.name, points[start : start + PAGE], wait=True)

    def mark_removed(self, ids: Iterable[str], state: State, now: float) -> None:
        """Marks the present rows of some ids as removed from the version that `state` claims."""
        from qdrant_client import models

        # Only what isn't marked yet: a writer that was given up but is still at work can't take a mark back.
        present = [models.FieldCondition(key=REMOVED, range=models.Range(gte=NEVER)), one_of(REMOVED, state.aborted)]
        for some in in_parts(list(dict.fromkeys(ids))):
            self._client.set_payload(
                self.name,
                {REMOVED: state.claimed, REMOVED_AT: now},
                points=models.Filter(
                    must=[
                        one_of("id", some),
                        models.FieldCondition(key=ADDED, range=models.Range(lte=state.version)),
                        models.Filter(should=present),
                    ],
                ),
                wait=True,
            )

    def clean(self, state: State, before: float) -> None:
        """Drops rows that were removed before a time, and what unfinished commits left."""
        from qdrant_client import models

        aborted = one_of(REMOVED, state.aborted)
        unread = models.Filter(
            must=[
                models.FieldCondition(key=REMOVED, range=models.Range(lte=state.version)),
                models.FieldCondition(key=REMOVED_AT, range=models.Range(lt=before)),
            ],
            must_not=[aborted],
        )
        unfinished = models.Filter(must=[one_of(ADDED, state.aborted)])
        for rows in (unread, unfinished):
            self._client.delete(self.name, models.FilterSelector(filter=rows), wait=True)
        self._client.set_payload(self.name, {REMOVED: NEVER}, points=models.Filter(must=[aborted]), wait=True)
