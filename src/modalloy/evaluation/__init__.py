"""From scores to ranks, from ranks to metrics, from metrics to comparisons with their intervals."""

from modalloy.evaluation.average_precision import AveragePrecision, map_at_r
from modalloy.evaluation.bootstrap import Difference, Interval, bootstrap_difference, bootstrap_interval
from modalloy.evaluation.comparison import Comparison, PairedDifference, SystemSummary, compare
from modalloy.evaluation.folds import rank_in_folds
from modalloy.evaluation.hubness import (
    BiasedScores,
    NearestNeighbours,
    inverted_softmax_scores,
    nearest_neighbour_bias,
    nearest_neighbour_scores,
    tune_nearest_neighbours,
)
from modalloy.evaluation.mcnemar import McNemar, mcnemar
from modalloy.evaluation.metrics import Metrics, RetrievalMetrics, metrics
from modalloy.evaluation.oracle import headroom_taken, oracle
from modalloy.evaluation.rank_average import rank_average
from modalloy.evaluation.ranks import Ranks, rank_each_direction, rank_queries
from modalloy.evaluation.records import RecallCurve, query_records, recall_curve
from modalloy.evaluation.reranking import rerank_ranks
from modalloy.evaluation.scores import EmbeddingScores, ScoreFunction, ScreenedScores, WeightedScores

__all__ = [
    "AveragePrecision",
    "BiasedScores",
    "Comparison",
    "Difference",
    "EmbeddingScores",
    "Interval",
    "McNemar",
    "Metrics",
    "NearestNeighbours",
    "PairedDifference",
    "Ranks",
    "RecallCurve",
    "RetrievalMetrics",
    "ScoreFunction",
    "ScreenedScores",
    "SystemSummary",
    "WeightedScores",
    "bootstrap_difference",
    "bootstrap_interval",
    "compare",
    "headroom_taken",
    "inverted_softmax_scores",
    "map_at_r",
    "mcnemar",
    "metrics",
    "nearest_neighbour_bias",
    "nearest_neighbour_scores",
    "oracle",
    "query_records",
    "rank_average",
    "rank_each_direction",
    "rank_in_folds",
    "rank_queries",
    "recall_curve",
    "rerank_ranks",
    "tune_nearest_neighbours",
]
