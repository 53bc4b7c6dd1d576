"""The constants of the ranking."""

WEIGHTS_VERSION, BM25_K1, BM25_B = 1, 1.2, 0.75
"""BM25's parameters: how soon further repetitions of a word stop counting, and how much the length
of a document counts. Documents store weights computed with them: with a higher version, the
statistics task computes all weights again."""

MAX_TERM_WEIGHT = BM25_K1 + 1
"""What a word's weight in a document, times its inverse document frequency, approaches at most."""

CANDIDATES = 200
"""How many rows of each ranking hybrid mode fuses; also the most that a vector search returns."""

MIN_FULL_MATCHES = 10
"""If fewer items than this match all words, items that match some of the words are added."""

MAX_RETRIEVED_ROWS = 20_000
"""Words are taken from rare to common. Once the rarer ones occur in this many rows, a more common
word adds to the score of the rows found, but retrieves no further rows."""

LEXICAL_WEIGHT = 0.6
"""The weight of the lexical score in a hybrid score, from 0 to 1; the rest is the semantic one."""

TYPO_SIMILARITY = 0.4
"""The minimum trigram similarity at which a word that no item contains counts as a typo of a word
that an item contains. With a lower value, rare words count as typos: "walks" for "wall"."""
