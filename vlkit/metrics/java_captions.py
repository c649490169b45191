"""The official COCO caption evaluation, which needs Java: words of the Penn Treebank tokenizer, METEOR and SPICE.

All three are Java programs that the package pycocoevalcap (extra ``captions``) brings or downloads. METEOR (Banerjee
and Lavie, 2005; version 1.5) lies in the package; SPICE (Anderson et al., ECCV 2016) downloads its parser when it is
first used.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from urllib.error import URLError

from vlkit.errors import UserError, needs
from vlkit.metrics.captions import caption_metrics

log = logging.getLogger(__name__)


def java_caption_metrics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The metrics of :func:`~vlkit.metrics.captions.caption_metrics` on official words, and ``meteor`` and ``spice``.

    All in percent. ``spice`` is left out, with a warning, if its parser is not there and cannot be downloaded.

    Args:
        captions: one for each of N images.
        references: the true captions of each image, at least one.

    Raises:
        UserError: no Java, the package is missing, or captions and references do not pair up.
    """
    if shutil.which("java") is None:
        raise UserError("METEOR and SPICE: java is not on the PATH; install a Java runtime (default-jre-headless)")
    with needs("captions", "METEOR and SPICE"):
        from pycocoevalcap.meteor.meteor import Meteor  # pyright: ignore[reportMissingImports]
        from pycocoevalcap.spice.spice import Spice  # pyright: ignore[reportMissingImports]
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer  # pyright: ignore[reportMissingImports]
    with _quiet():
        tokenizer = PTBTokenizer()
        guesses = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(captions)})
        truth = tokenizer.tokenize({i: [{"caption": text} for text in texts] for i, texts in enumerate(references)})
    metrics = caption_metrics([guesses[i][0] for i in guesses], [truth[i] for i in truth], str.split)
    with _quiet():
        metrics["meteor"] = 100 * float(Meteor().compute_score(truth, guesses)[0])
        try:
            metrics["spice"] = 100 * float(Spice().compute_score(truth, guesses)[0])
        except URLError as error:
            log.warning("SPICE is left out: its parser could not be downloaded (%s)", error.reason)
    return metrics


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The package prints what it does; standard output is for the metrics."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
