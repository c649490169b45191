"""Every official format with damage: refused in one line or read into records that a dataset accepts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.mutate import damaged, examples, odd_json, odd_table, survives
from vlkit.data.manifest import write_dataset
from vlkit.data.sources import (
    charades_sta,
    class_splits,
    coco,
    ego4d_nlq,
    flickr30k,
    glue,
    gqa,
    image_folder,
    mdetr_phrases,
    msrvtt,
    msvd,
    nlvr2,
    own_moments,
    qvhighlights,
    refcoco,
    tacos,
    text_files,
    tvsum,
    vqav2,
    youtube_highlights,
)
from vlkit.data.sources.prepare import Source

Files = dict[str, Any]
"""Name -> a text, JSON lines (a tuple), or another JSON value."""

IMAGE = {"file_name": "COCO_train2014_000000000123.jpg", "height": 80, "width": 100, "id": 123}
BOX = {"id": 5001, "image_id": 123, "category_id": 18, "bbox": [10.0, 10.0, 50.5, 30.25]}
MASK = {"id": 5002, "image_id": 123, "category_id": 18, "segmentation": [[1, 1, 20, 1, 20, 20]]}
REF = {"ann_id": 5001, "ref_id": 0, "image_id": 123, "split": "train", "file_name": "x_1.jpg"}
SENTENCES = [
    {"sent_id": 1, "sent": "brown dog", "raw": "Brown dog!"},
    {"sent_id": 2, "raw": "the dog"},
    {"sent_id": 3, "sent": "it"},
]
QUERY = {"clip_start_sec": 7.2, "clip_end_sec": 11.2, "query": "Where is the knife?"}
CLIP = {"clip_uid": "c", "video_start_sec": 1.0, "video_end_sec": 90.0}
MOMENT = {"qid": 4, "query": "A dog runs.", "duration": 150, "vid": "v", "relevant_windows": [[26, 30]]}
SALIENCY = {"relevant_clip_ids": [13, 14], "saliency_scores": [[4, 4, 2], [3, 4, 2]]}
GQA = {"imageId": "1", "question": "What is it?", "answer": "dog", "types": {"structural": "query", "semantic": "rel"}}
ASKED = {"image_id": 9, "question": "What is it?", "question_id": 90}
ANSWERED = {
    **{"image_id": 9, "question_id": 90, "question_type": "what is", "answer_type": "other"},
    **{"answers": [{"answer": "dog", "answer_id": k} for k in range(10)], "multiple_choice_answer": "dog"},
}
KARPATHY = {
    **{"filename": "1.jpg", "split": "train", "imgid": 0, "sentids": [0, 1], "filepath": "val2014", "cocoid": 9},
    **{"sentences": [{"raw": "A dog.", "tokens": ["a", "dog"], "imgid": 0, "sentid": 0}, {"tokens": ["x"]}]},
}
PAIR = {"identifier": "train-1-0-0", "sentence": "A dog.", "label": "True", "directory": 36}
LIST_PAIR = {"identifier": "dev-1-0-0", "sent": "A dog.", "label": 1, "img0": "dev-1-0-img0", "img1": "dev-1-0-img1"}


@dataclass(frozen=True)
class Format:
    """Small files of a format, and what reads the folder that holds them."""

    files: Files
    read: Callable[[Path], Any]
    task: str


def _qa(folder: Path) -> Source:
    return vqav2.read([folder / "v2_OpenEnded_mscoco_train2014_questions.json"], [folder / "train_annotations.json"])


FORMATS = {
    "refs": Format(
        {
            "refs(unc).json": [
                {**REF, "sentences": SENTENCES[:2]},
                {**REF, "ann_id": 5002, "sentences": SENTENCES[2:]},
            ],
            "instances.json": {
                "images": [IMAGE],
                "annotations": [BOX, MASK],
                "categories": [{"id": 18, "name": "dog"}],
            },
        },
        lambda folder: refcoco.read_refs(folder / "refs(unc).json"),
        "grounding",
    ),
    "mdetr": Format(
        {
            "finetune_refcoco_train.json": {
                "images": [{**IMAGE, "caption": "brown dog", "original_id": 123}],
                "annotations": [{**BOX, "image_id": 123, "original_id": 5001, "tokens_positive": [[0, 5]]}],
            }
        },
        lambda folder: refcoco.read_mdetr([folder / "finetune_refcoco_train.json"]),
        "grounding",
    ),
    "mdetr_phrases": Format(
        {
            "final_flickr_separateGT_train.json": {
                "images": [{**IMAGE, "caption": "a dog", "sentence_id": 0, "tokens_positive_eval": [[[0, 5]]]}],
                "annotations": [{**BOX, "image_id": 123, "tokens_positive": [[0, 5]]}],
            }
        },
        lambda folder: mdetr_phrases.read([folder / "final_flickr_separateGT_train.json"]),
        "grounding",
    ),
    "ego4d": Format(
        {
            "nlq_train.json": {
                "videos": [
                    {
                        "video_uid": "v",
                        "clips": [{**CLIP, "annotations": [{"annotation_uid": "u", "language_queries": [QUERY]}]}],
                    }
                ]
            }
        },
        ego4d_nlq.read,
        "moment_retrieval",
    ),
    "qvhighlights": Format(
        {"highlight_train_release.jsonl": ({**MOMENT, **SALIENCY}, {**MOMENT, "qid": 5})},
        qvhighlights.read,
        "moment_retrieval",
    ),
    "tacos": Format(
        {
            "train.json": {
                "v.avi": {"timestamps": [[30, 90]], "sentences": ["He cuts."], "fps": 30.0, "num_frames": 900}
            },
            "val.jsonl": (MOMENT,),
        },
        tacos.read,
        "moment_retrieval",
    ),
    "charades": Format(
        {
            "charades_sta_train.txt": "AB12C 3.5 10.2##person opens ## the door.\n",
            "Charades_v1_train.csv": 'id,length,script\nAB12C,30.96,"a, b"\n',
        },
        charades_sta.read,
        "moment_retrieval",
    ),
    "tvsum": Format(
        {"tvsum_anno.json": {"WxtbjNsCQ8A": {"title": "tyre", "anno": [[3] * 20, [5] * 20]}}},
        tvsum.read,
        "moment_retrieval",
    ),
    "own_moments": Format(
        {"moments.csv": "video,text,start,end,split\na.mp4,a dog,1,2.5,train\nb.mp4,a cat,0,1,val\n"},
        lambda folder: own_moments.read(folder / "moments.csv"),
        "moment_retrieval",
    ),
    "gqa": Format(
        {"train_balanced_questions.json": {"01": GQA, "02": {**GQA, "answer": "cat"}}},
        lambda folder: gqa.read([folder / "train_balanced_questions.json"]),
        "vqa",
    ),
    "gqa_list": Format(
        {"train.json": [{"question_id": "1", "img_id": "n1", "sent": "what?", "label": {"dog": 1.0}}]},
        lambda folder: gqa.read([folder / "train.json"]),
        "vqa",
    ),
    "nlvr2": Format(
        {"train.json": (PAIR, {**PAIR, "identifier": "train-1-0-1"}), "dev.json": [LIST_PAIR]},
        lambda folder: nlvr2.read([folder / "train.json", folder / "dev.json"]),
        "vqa",
    ),
    "vqa": Format(
        {
            "v2_OpenEnded_mscoco_train2014_questions.json": {"data_subtype": "train2014", "questions": [ASKED]},
            "train_annotations.json": {"data_subtype": "train2014", "annotations": [ANSWERED]},
        },
        _qa,
        "vqa",
    ),
    "karpathy": Format(
        {"dataset_coco.json": {"images": [KARPATHY, {**KARPATHY, "imgid": 1, "cocoid": 10, "filename": "2.jpg"}]}},
        lambda folder: coco.read(folder / "dataset_coco.json"),
        "retrieval",
    ),
    "coco_captions": Format(
        {
            "captions_val2017.json": {
                "images": [IMAGE],
                "annotations": [{"id": 1, "image_id": 123, "caption": "A dog."}],
            }
        },
        lambda folder: coco.read(folder / "captions_val2017.json"),
        "retrieval",
    ),
    "coco_lists": Format(
        {"coco_karpathy_train.json": [{"image": "val2014/1.jpg", "caption": "a dog", "image_id": "coco_1"}]},
        lambda folder: coco.read(folder / "coco_karpathy_train.json"),
        "retrieval",
    ),
    "flickr30k": Format(
        {"results.token": "1.jpg#0\tA dog .\n1.jpg#1\tA cat .\n", "train.txt": "1.jpg\n"},
        lambda folder: flickr30k.read(folder / "results.token", split_lists=folder),
        "retrieval",
    ),
    "flickr30k_csv": Format(
        {"results.csv": "image_name| comment_number| comment\n1.jpg| 0| A dog .\n"},
        lambda folder: flickr30k.read(folder / "results.csv"),
        "retrieval",
    ),
    "msrvtt": Format(
        {
            "MSRVTT_data.json": {
                "videos": [
                    {"video_id": f"video{k}", "split": s, "start time": 1.0, "end time": 9.5, "url": "u", "category": 1}
                    for k, s in enumerate(("train", "test"))
                ],
                "sentences": [{"video_id": f"video{k}", "sen_id": k, "caption": f"a dog {k}"} for k in (0, 1)],
            },
            "MSRVTT_train.9k.csv": "video_id\nvideo0\n",
            "MSRVTT_JSFUSION_test.csv": 'key,vid_key,video_id,sentence\nret0,msr0,video1,"a dog 1"\n',
        },
        lambda folder: msrvtt.read(folder / "MSRVTT_data.json"),
        "video_retrieval",
    ),
    "msvd": Format(
        {
            "video_corpus.csv": "VideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description\n"
            'a-b_c,8,15,1,clean,2,English,"A dog, running"\n',
            "train_list.txt": "a-b_c_8_15\n",
        },
        lambda folder: msvd.read(folder / "video_corpus.csv"),
        "video_retrieval",
    ),
    "glue": Format(
        {
            "train.tsv": "index\tsentence1\tsentence2\tlabel\n" + "0\tA dog.\tA cat.\tentailment\n" * 3,
            "dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tA dog.\tA cat.\tnot_entailment\n" * 2,
        },
        lambda folder: glue.read(folder, "rte"),
        "text",
    ),
    "own_texts": Format(
        {"own.csv": 'text,label\n"a, b",1\nc,0\nd,1\n'},
        lambda folder: text_files.read({"train": folder / "own.csv"}, text_files.Columns(), "own"),
        "text",
    ),
    "own_text_lines": Format(
        {"own.jsonl": ({"text": "a", "label": "x"}, {"text": "b", "label": "y"}, {"text": "c", "label": 1.5})},
        lambda folder: text_files.read({"train": folder / "own.jsonl"}, text_files.Columns(), "own"),
        "text",
    ),
    "class_split": Format(
        {"split_zhou_Pets.json": {s: [["a.jpg", 0, "cat"], ["b.jpg", 1, "dog"]] for s in ("train", "val", "test")}},
        lambda folder: class_splits.read_split_file(folder / "split_zhou_Pets.json"),
        "classification",
    ),
    "class_lists": Format(
        {"train.txt": "a/b.jpg 0\nc.jpg 1\n", "test.txt": "d.jpg 1\n"},
        lambda folder: class_splits.read_lists([folder / "train.txt", folder / "test.txt"], "own"),
        "classification",
    ),
    "class_table": Format(
        {"table.csv": "image,label,split\na.jpg,cat,train\nb.jpg,dog,test\n"},
        lambda folder: image_folder.read_table(folder / "table.csv", folder),
        "classification",
    ),
    "youtube": Format(
        {
            "youtube_anno.json": {
                "v": {"frames": 300, "fps": 30.0, "match": [1, -1, 0], "info": ["", 0, 0, 0, 0, "dog"]}
            }
        },
        youtube_highlights.read,
        "moment_retrieval",
    ),
}


def write(folder: Path, files: Files) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(as_bytes(content))


def as_bytes(content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    if isinstance(content, tuple):
        content = "".join(json.dumps(line) + "\n" for line in content)
    return (content if isinstance(content, str) else json.dumps(content)).encode(errors="surrogatepass")


def read_whole(form: Format, folder: Path) -> None:
    """Read the folder and write what was found, as the scripts do, but for the media."""
    source = form.read(folder)
    source = source if isinstance(source, Source) else source.source()
    splits = {split: records for split, records in source.splits.items() if records}
    what = {"name": "x", "task": form.task, "splits": splits, "extra": source.extra}
    write_dataset(folder / "out", **what, media_root=folder, source=None)


@pytest.mark.parametrize("name", FORMATS)
def test_the_sample_is_read(tmp_path: Path, name: str) -> None:
    write(tmp_path / "it", FORMATS[name].files)
    read_whole(FORMATS[name], tmp_path / "it")


@pytest.mark.parametrize("name", FORMATS)
@examples(60)
@given(data=st.data())
def test_damage_is_one_line(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    form, folder = FORMATS[name], tmp_path_factory.getbasetemp() / f"official {name}"
    file = data.draw(st.sampled_from(sorted(form.files)))
    content = form.files[file]
    if isinstance(content, str):
        changed: Any = data.draw(st.one_of(damaged(content.encode()), odd_table(content)))
    elif isinstance(content, tuple):
        odd = data.draw(odd_json(list(content)))
        changed = tuple(odd) if isinstance(odd, list) else odd
    else:
        changed = data.draw(odd_json(content))
    write(folder, {**form.files, file: changed})
    survives(lambda: read_whole(form, folder))
