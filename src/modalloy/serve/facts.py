"""What an index and its encoder can be asked for."""

from pathlib import Path

from modalloy.index import Condition
from modalloy.index.condition import fields_of
from modalloy.index.summary import count_pictures
from modalloy.search import View
from modalloy.search.explanation import input_names
from modalloy.serve.models import IndexAnswer


def facts_of(view: View, k_most: int) -> IndexAnswer:
    """What there is to search in one state of an index; without any path.

    Args:
        view: the state with its encoder.
        k_most: answers that one search may ask for.
    """
    snapshot, metadata = view.snapshot, view.snapshot.metadata
    head = snapshot.head
    return IndexAnswer(
        pictures=count_pictures(snapshot),
        captions=snapshot.count((Condition("modality", "=", "text"),)),
        encoder=view.encoder.name,
        version=snapshot.version,
        generation=head.generation,
        fields={**fields_of(metadata)},
        rerankers=list(view.rerankers),
        # What `by` can name.
        inputs=[name for name in input_names(view.encoder) if name in (view.vector_parts or ())],
        words=view.finds_words,
        local_files=any(Path(source.root).is_dir() for source in head.sources),
        k_most=k_most,
    )
