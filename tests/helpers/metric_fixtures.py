"""Runs a folder of golden metric files by its ``index.json`` against :mod:`vlkit.metrics`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from vlkit.data.sources.flickr30k_entities import match_predictions, read_phrases
from vlkit.errors import UserError
from vlkit.metrics import glue, grounding, moment, retrieval, video, vqa
from vlkit.metrics.ranks import ranks_from_similarity
from vlkit.metrics.vqa_text import normalize_answer, normalize_punctuation, normalize_words
from vlkit.tasks.moment_retrieval.windows import post_process


class Check(NamedTuple):
    """One case: the largest absolute difference to its golden numbers, and what is allowed.

    ``case`` is ``kind/case``, with a reason when nothing could be compared; ``worst`` is then infinite.
    """

    case: str
    worst: float
    tolerance: float
    ok: bool


def check_folder(folder: str | Path) -> list[Check]:
    """Check every case that ``folder/index.json`` lists.

    A kind without an implementation fails by name ("not covered"); so does a case whose files do not hold what its kind
    should. Percentages are allowed 1e-6, what the reference computed in float32 or rounded accordingly more.
    """
    folder = Path(folder)
    checks = []
    for entry in json.loads((folder / "index.json").read_text()):
        name, kind = f"{entry['kind']}/{entry['case']}", entry["kind"]
        if kind not in KINDS:
            checks.append(Check(f"{name}: not covered", math.inf, 0.0, False))
            continue
        check, tolerance = KINDS[kind]
        try:
            worst = check(folder, entry["case"])
        except (KeyError, IndexError, TypeError, ValueError, OSError, UserError) as error:
            checks.append(Check(f"{name}: {type(error).__name__}: {error}", math.inf, tolerance, False))
            continue
        checks.append(Check(name, worst, tolerance, worst <= tolerance))
    if not checks:
        checks.append(Check("index.json: no case listed", math.inf, 0.0, False))
    return checks


def difference(got: Any, expected: Any) -> float:
    """Largest absolute difference of two equally built trees of numbers; infinite where they are built differently."""
    if isinstance(expected, Mapping):
        if not isinstance(got, Mapping) or got.keys() != expected.keys():
            return math.inf
        return max((difference(got[key], value) for key, value in expected.items()), default=math.inf)
    if isinstance(expected, str | bool) or expected is None:
        return 0.0 if got == expected else math.inf
    got, expected = np.asarray(got, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if got.shape != expected.shape:
        return math.inf
    worst = float(np.max(np.abs(got - expected), initial=0.0))
    return math.inf if math.isnan(worst) else worst


def _image_text(folder: Path, case: str) -> float:
    arrays, golden = load_file(folder / f"image_text/{case}.safetensors"), _json(folder / f"image_text/{case}.json")
    owner = np.arange(arrays["sims"].shape[1]) // 5
    policies = {"pessimistic": "expected", "optimistic": "expected"} if golden["tie_free"] else {}
    worst = 0.0
    for ties in ("pessimistic", "optimistic"):
        metrics = retrieval.image_text_metrics_of_similarity(arrays["sims"], owner, ties)
        worst = max(worst, difference(_image_text_names(metrics), golden[policies.get(ties, ties)]))
    if golden["tie_free"]:
        ranks = ranks_from_similarity(arrays["sims"], owner)
        worst = max(worst, difference(ranks.i2t, arrays["i2t_ranks"]), difference(ranks.t2i, arrays["t2i_ranks"]))
    return worst


def _image_text_5fold(folder: Path, case: str) -> float:
    path = folder / "image_text_5fold"
    arrays, golden = load_file(path / f"{case}.safetensors"), _json(path / f"{case}.json")
    images, texts = arrays["image_emb"], arrays["caption_emb"]
    owner, size = np.arange(len(texts)) // 5, golden["images_per_fold"]
    full = retrieval.image_text_metrics(images, texts, owner)
    folds = retrieval.fold_metrics(images, texts, owner, golden["n_folds"])
    worst = max(
        difference(_image_text_names(full), golden["expected_full"]),
        difference(_image_text_names(folds), golden["expected_5fold"]),
    )
    for fold, expected in enumerate(golden["expected_per_fold"]):
        part = images[fold * size : (fold + 1) * size], texts[fold * size * 5 : (fold + 1) * size * 5]
        names = _image_text_names(retrieval.image_text_metrics(*part, owner[: size * 5]))
        worst = max(worst, difference({key: names[key] for key in expected}, expected))
    return worst


def _image_text_names(metrics: Mapping[str, float]) -> dict[str, Any]:
    names = {"r1": "r1", "r5": "r5", "r10": "r10", "medr": "median_rank", "meanr": "mean_rank"}
    directions = {side: {key: metrics[f"{side}_{name}"] for key, name in names.items()} for side in ("i2t", "t2i")}
    means = {"ar": metrics["i2t_mean_recall"], "ari": metrics["t2i_mean_recall"]}
    return directions | means | {"rsum": metrics["rsum"]}


_VIDEO_NAMES = {"R1": "r1", "R5": "r5", "R10": "r10", "MedianR": "median_rank", "MeanR": "mean_rank"}


def _video_single(folder: Path, case: str) -> float:
    path = folder / "video_single"
    similarity, golden = load_file(path / f"{case}.safetensors")["sims"], _json(path / f"{case}.json")
    worst = 0.0
    for ties in ("pessimistic", "optimistic"):
        metrics = video.single_sentence_metrics(similarity, ties)
        expected = golden["expected" if golden["tie_free"] else ties]
        for side in ("t2v", "v2t"):
            got = {key: metrics[f"{side}_{name}"] for key, name in _VIDEO_NAMES.items()}
            worst = max(worst, difference(got, {key: expected[side][key] for key in got}))
    if golden["tie_free"]:
        ranks = ranks_from_similarity(similarity.T, np.arange(len(similarity)))
        for side, found in (("t2v", ranks.t2i), ("v2t", ranks.i2t)):
            worst = max(worst, difference(found, golden["expected"][side]["cols"]))
    return worst


def _video_multi(folder: Path, case: str) -> float:
    path = folder / "video_multi"
    arrays, golden = load_file(path / f"{case}.safetensors"), _json(path / f"{case}.json")
    owner = np.repeat(np.arange(len(arrays["sentences_per_video"])), arrays["sentences_per_video"])
    worst = 0.0
    for ties in ("pessimistic", "optimistic"):
        metrics = video.multi_sentence_metrics(arrays["sims"], owner, ties)
        expected = golden["expected" if golden["tie_free"] else ties]
        text = {key: metrics[f"t2v_{name}"] for key, name in (_VIDEO_NAMES | {"Std_Rank": "std_rank"}).items()}
        grouped = {key: metrics[f"v2t_{name}"] for key, name in _VIDEO_NAMES.items()}
        worst = max(worst, difference(text, {key: expected["t2v"][key] for key in text}))
        worst = max(worst, difference(grouped, {key: expected["v2t_grouped"][key] for key in grouped}))
    return worst


def _vqa_normalize(folder: Path, case: str) -> float:
    steps = {"punct": normalize_punctuation, "digit_article": normalize_words, "full": normalize_answer}
    golden = _json(folder / f"vqa/{case}.json")
    return max(difference(step(row["in"]), row[name]) for row in golden for name, step in steps.items())


def _vqa_eval(folder: Path, case: str) -> float:
    path = folder / "vqa" / case
    annotations = {row["question_id"]: row for row in _json(path / "annotations.json")["annotations"]}
    predictions = {row["question_id"]: row["answer"] for row in _json(path / "results.json")}
    references = {key: [answer["answer"] for answer in row["answers"]] for key, row in annotations.items()}
    answer_types = {key: row["answer_type"] for key, row in annotations.items()}
    scores = vqa.answer_scores(predictions, references)
    got = {
        "accuracy": {
            "overall": vqa.vqa_metrics(predictions, references)["accuracy"],
            "perQuestionType": vqa.accuracy_by_group(
                scores, {key: row["question_type"] for key, row in annotations.items()}
            ),
            "perAnswerType": vqa.accuracy_by_group(scores, answer_types),
        },
        "evalQA": {str(key): round(100 * score, 2) for key, score in scores.items()},
    }
    golden = _json(path / "expected.json")
    return difference(got, {key: golden[key] for key in got})


def _vqa_soft_targets(folder: Path, case: str) -> float:
    golden = _json(folder / f"vqa/soft_targets_{case}.json")
    annotations = _json(folder / "vqa/mixed/annotations.json")["annotations"]
    answers = [(row["question_id"], row["multiple_choice_answer"]) for row in annotations]
    vocabulary = vqa.build_vocabulary(answers, golden["min_occurrence"])
    if vocabulary != golden["vocab"] or len(annotations) != len(golden["targets"]):
        return math.inf
    labels = {answer: label for label, answer in enumerate(vocabulary)}
    worst = 0.0
    for row, expected in zip(annotations, golden["targets"], strict=True):
        target = vqa.soft_target([answer["answer"] for answer in row["answers"]], labels)
        named = {vocabulary[label]: score for label, score in target.items()}
        if named or expected["labels"]:
            worst = max(worst, difference(named, expected["labels"]))
    return worst


def _refexp(folder: Path, case: str) -> float:
    arrays, golden = load_file(folder / f"refexp/{case}.safetensors"), _json(folder / f"refexp/{case}.json")
    target = arrays["gt_boxes_xywh"].copy()
    target[:, 2:] += target[:, :2]
    worst = 0.0
    for overlap, suffix, key in (("iou", "", "expected_iou"), ("giou", "_giou", "expected_giou_mdetr")):
        for index, dataset in enumerate(golden["datasets"]):
            rows = arrays["dataset_index"] == index
            found = grounding.precision_at_k(
                arrays["pred_boxes_xyxy"][rows], arrays["pred_scores"][rows], target[rows], overlap
            )
            fractions = [found[f"p@{k}{suffix}"] / 100 for k in golden["k"]]
            worst = max(worst, difference(fractions, golden[key][dataset]), abs(sum(rows) - golden["count"][dataset]))
    return float(worst)


def _flickr_entities(folder: Path, case: str) -> float:
    path = folder / "flickr_entities" / case
    golden = _json(path / "expected.json")
    phrases = read_phrases(path, "test")
    ranked = match_predictions(phrases, _json(path / "predictions.json"))
    sentences = len({(phrase.image, phrase.sentence) for phrase in phrases})
    worst = difference([len(phrases), sentences], [golden["n_phrases"], golden["n_sentences_evaluated"]])
    for protocol in ("any_box", "merged_boxes"):
        found = grounding.phrase_recall(ranked, [p.boxes for p in phrases], [p.categories for p in phrases], protocol)
        for name, expected in golden[protocol].items():
            key = name.lower()
            got = {group: found[key if group == "all" else f"{key}_{group}"] / 100 for group in expected}
            worst = max(worst, difference(got, expected))
    return worst


def _moment(folder: Path, case: str) -> float:
    path = folder / "moment" / case
    truth, golden = _jsonl(path / "ground_truth.jsonl"), _json(path / "expected.json")
    submitted = {row["qid"]: row for row in _jsonl(path / "submission.jsonl")}
    predicted = [submitted[row["qid"]]["pred_relevant_windows"] for row in truth]
    target = [row["relevant_windows"] for row in truth]
    groups = {"full": moment.moment_metrics(predicted, target)} | moment.moment_metrics_by_length(predicted, target)
    worst = 0.0
    for group, found in groups.items():
        expected = golden[group]
        got = {
            "MR-mIoU": found["mean_iou"],
            "MR-mAP": {t: found["map" if t == "average" else f"map@{t}"] for t in expected["MR-mAP"]},
            "MR-R1": {t: found[f"r1@{t}"] for t in expected["MR-R1"]},
            "MR-R5": {t: found[f"r5@{t}"] for t in expected["MR-R5"]},
        }
        worst = max(worst, difference(got, expected))
    scores = [submitted[row["qid"]]["pred_saliency_scores"] for row in truth]
    found = moment.highlight_metrics(scores, [_saliency(row) for row in truth])
    for name, level in (("Fair", "fair"), ("Good", "good"), ("VeryGood", "very_good")):
        got = {"HL-mAP": found[f"{level}_map"], "HL-Hit1": found[f"{level}_hit@1"]}
        worst = max(worst, difference(got, golden[f"HL-min-{name}"]))
    return worst


def _saliency(row: Mapping[str, Any]) -> np.ndarray:
    labels = np.zeros((int(row["duration"] / 2), 3), dtype=np.int64)
    labels[row["relevant_clip_ids"]] = row["saliency_scores"]
    return labels


def _glue(folder: Path, case: str) -> float:
    worst, compared = 0.0, 0
    for task in _json(folder / f"glue/{case}.json")["tasks"].values():
        for name in task.keys() & {"accuracy", "f1", "matthews", "pearson", "spearman"}:
            worst = max(worst, difference(getattr(glue, name)(task["predictions"], task["labels"]), task[name]))
            compared += 1
    return worst if compared else math.inf


def _moment_post(folder: Path, case: str) -> float:
    worst = 0.0
    for one in _json(folder / f"moment_post/{case}.json"):
        how = one["nms"] or {"type": "none"}
        nms = {"normal": "hard"}.get(how["type"], how["type"])
        found = post_process(one["input"], one["duration"], one["unit"] or 0.0, nms, how.get("thres", 0.7))
        worst = max(worst, difference(_in_order(found), _in_order(np.array(one["expected"]))))
        if (np.diff(found[:, 2]) > 0).any():
            return math.inf
    return worst


def _in_order(windows: np.ndarray) -> np.ndarray:
    """Windows sorted, because the order among equal scores is free."""
    windows = windows.reshape(-1, 3)
    return windows[np.lexsort((windows[:, 1], windows[:, 0], -windows[:, 2].round(12)))]


def _highlight(folder: Path, case: str) -> float:
    worst, golden = 0.0, _json(folder / f"highlight/{case}.json")
    for name, metric, labels in (
        ("tvsum", moment.tvsum_metrics, "anno"),
        ("youtube", moment.youtube_metrics, "match"),
    ):
        for one in golden.get(name, []):
            scores, target = ([video[key] for video in one["videos"]] for key in ("saliency", labels))
            worst = max(worst, difference(metric(scores, target)["hl_map"] / 100, one["expected_mAP"]))
    return worst


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _jsonl(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# kind -> (largest absolute difference of a case, what is allowed)
KINDS: dict[str, tuple[Callable[[Path, str], float], float]] = {
    "image_text": (_image_text, 1e-6),
    "image_text_5fold": (_image_text_5fold, 1e-6),
    "video_single": (_video_single, 1e-6),
    "video_multi": (_video_multi, 1e-4),
    "vqa_normalize": (_vqa_normalize, 0.0),
    "vqa_eval": (_vqa_eval, 1e-6),
    "vqa_soft_targets": (_vqa_soft_targets, 1e-6),
    "refexp": (_refexp, 1e-8),
    "flickr_entities": (_flickr_entities, 1e-8),
    "moment": (_moment, 0.0101),
    "moment_post": (_moment_post, 1e-9),
    "highlight": (_highlight, 0.51e-5),
    "glue": (_glue, 1e-6),
}
