"""Caption metrics as in the COCO caption evaluation: BLEU-1..4, ROUGE-L and CIDEr-D, on the words of the caller.

Written here because the one package with these definitions brings 100 MB of Java archives for its other metrics; METEOR
and SPICE are computed by it (:mod:`vlkit.metrics.java_captions`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from vlkit.errors import UserError
from vlkit.metrics.caption_text import caption_words

Words = Sequence[str]
NGRAMS = 4
BETA = 1.2
"""Weight of recall in ROUGE-L."""
TINY, SMALL = 1e-15, 1e-9
"""Added to matches and to guesses in BLEU by the published code, instead of a smoothing."""
SIGMA = 6.0
"""CIDEr-D: standard deviation of the penalty on the difference in length."""


def caption_metrics(
    captions: Sequence[str], references: Sequence[Sequence[str]], words: Callable[[str], list[str]] = caption_words
) -> dict[str, float]:
    """``cider`` (x 100), ``bleu1`` to ``bleu4`` and ``rouge_l`` in percent.

    Args:
        captions: one for each of N images.
        references: the true captions of each image, at least one.
        words: text -> its words (:func:`vlkit.metrics.caption_text.caption_words`).

    Raises:
        UserError: no captions, or an image without references.
    """
    if not captions or len(captions) != len(references) or any(not texts for texts in references):
        raise UserError(f"{len(captions)} captions and {len(references)} images with true captions do not pair up")
    candidates = [words(text) for text in captions]
    truth = [[words(text) for text in texts] for texts in references]
    bleu = corpus_bleu(candidates, truth)
    return {
        "cider": 100 * sum(cider_d(candidates, truth)) / len(candidates),
        **{f"bleu{n}": 100 * score for n, score in enumerate(bleu, 1)},
        "rouge_l": 100 * sum(map(rouge_l, candidates, truth)) / len(candidates),
    }


def corpus_bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 to BLEU-4 of a corpus (Papineni et al., ACL 2002), fractions.

    Counts are summed over the corpus, without smoothing. The brevity penalty uses the references of the closest length
    (the shorter of two).
    """
    right, guessed = [0] * NGRAMS, [0] * NGRAMS
    length = reference_length = 0
    for candidate, texts in zip(candidates, references, strict=True):
        length += len(candidate)
        reference_length += min((len(text) for text in texts), key=lambda size: (abs(size - len(candidate)), size))
        for n in range(NGRAMS):
            counts = ngrams(candidate, n + 1)
            most: Counter[tuple[str, ...]] = Counter()
            for text in texts:
                most |= ngrams(text, n + 1)
            right[n] += (counts & most).total()
            guessed[n] += counts.total()
    brevity = 1.0 if length >= reference_length else math.exp(1 - reference_length / length) if length else 0.0
    scores, product = [], 1.0
    for n in range(NGRAMS):
        product *= (right[n] + TINY) / (guessed[n] + SMALL)
        scores.append(brevity * product ** (1 / (n + 1)))
    return scores


def rouge_l(candidate: Words, references: Sequence[Words]) -> float:
    """ROUGE-L of one caption (Lin, 2004), a fraction: F of the largest precision and the largest recall of the longest
    common subsequence over the references.
    """
    common = [_longest_common(candidate, text) for text in references]
    precision = max((found / len(candidate) for found in common), default=0.0) if candidate else 0.0
    recall = max((found / len(text) for found, text in zip(common, references, strict=True) if text), default=0.0)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each caption (Vedantam et al., CVPR 2015), 0 to 10; the score of a corpus is the mean.

    Document frequencies come from these references, one document per image, so a corpus of one image scores 0.
    """
    documents: Counter[tuple[str, ...]] = Counter()
    for texts in references:
        documents.update({gram for text in texts for n in range(NGRAMS) for gram in ngrams(text, n + 1)})
    total = math.log(len(references))

    def weights(text: Words) -> list[dict[tuple[str, ...], float]]:
        counted = (ngrams(text, n + 1) for n in range(NGRAMS))
        return [{g: c * (total - math.log(max(1, documents[g]))) for g, c in counts.items()} for counts in counted]

    scores = []
    for candidate, texts in zip(candidates, references, strict=True):
        own = weights(candidate)
        similar = 0.0
        for text in texts:
            # The published code measures lengths in pairs of words.
            penalty = math.exp(-((max(len(candidate) - 1, 0) - max(len(text) - 1, 0)) ** 2) / (2 * SIGMA**2))
            similar += penalty * sum(map(_clipped_cosine, own, weights(text))) / NGRAMS
        scores.append(10 * similar / len(texts))
    return scores


def ngrams(words: Words, n: int) -> Counter[tuple[str, ...]]:
    """The runs of ``n`` words with their counts."""
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def _clipped_cosine(own: Mapping[tuple[str, ...], float], other: Mapping[tuple[str, ...], float]) -> float:
    """Cosine of two weight vectors, with those of the candidate clipped to the reference's."""
    norms = [math.sqrt(sum(weight**2 for weight in vector.values())) for vector in (own, other)]
    if not norms[0] or not norms[1]:
        return 0.0
    products = (min(weight, other[gram]) * other[gram] for gram, weight in own.items() if gram in other)
    return sum(products) / math.prod(norms)


def _longest_common(left: Words, right: Words) -> int:
    row = [0] * (len(right) + 1)
    for word in left:
        before = 0
        for j, other in enumerate(right, 1):
            before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]
