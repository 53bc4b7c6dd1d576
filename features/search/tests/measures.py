"""Measures the quality of rankings against human judgements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2
from random import Random
from statistics import fmean
from string import ascii_lowercase

Judgements = Mapping[str, int]
"""Grades by item, 0 for not relevant; unjudged items are absent."""


@dataclass(frozen=True)
class Quality:
    """Means over all queries, each from 0 to 1."""

    ndcg: float
    condensed_ndcg: float
    judged: float
    recall: float


def quality(rankings: Mapping[str, Sequence[str]], judged: Mapping[str, Judgements]) -> Quality:
    """Computes nDCG@10, nDCG@10 without unjudged items (Sakai 2007), judged@10 and recall@100, over
    the queries that have at least one relevant item."""
    queries = [query for query in rankings if any(judged[query].values())]
    return Quality(
        ndcg=fmean(ndcg(rankings[query], judged[query]) for query in queries),
        condensed_ndcg=fmean(
            ndcg([item for item in rankings[query] if item in judged[query]], judged[query])
            for query in queries
        ),
        judged=fmean(
            sum(item in judged[query] for item in rankings[query][:10]) / 10 for query in queries
        ),
        recall=fmean(_recall(rankings[query], judged[query]) for query in queries),
    )


def ndcg(ranking: Sequence[str], grades: Judgements, depth: int = 10) -> float:
    """Returns the normalised discounted cumulative gain; a grade g has the gain 2^g - 1 (Burges
    2005)."""
    gains = [2 ** grades.get(item, 0) - 1 for item in ranking[:depth]]
    best = sorted((2**grade - 1 for grade in grades.values()), reverse=True)[:depth]
    return _discounted(gains) / _discounted(best)


def misspell(query: str) -> str:
    """Returns the query with one edit in one word of four letters or more; deterministic."""
    random = Random(query)
    words = query.split()
    long = [place for place, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    if not long:
        return query
    place = random.choice(long)
    word, at = words[place], random.randrange(1, len(words[place]) - 1)
    letter = random.choice(ascii_lowercase)
    words[place] = random.choice(
        [
            word[:at] + word[at + 1 :],
            word[:at] + letter + word[at:],
            word[:at] + letter + word[at + 1 :],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        ]
    )
    return " ".join(words)


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / log2(place + 2) for place, gain in enumerate(gains))


def _recall(ranking: Sequence[str], grades: Judgements, depth: int = 100) -> float:
    relevant = {item for item, grade in grades.items() if grade > 0}
    return len(relevant.intersection(ranking[:depth])) / len(relevant)
