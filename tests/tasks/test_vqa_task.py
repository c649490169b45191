"""The VQA scripts, from a prepared dataset to answers, on the embedded bases."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vlkit
from helpers.scripts import call, launch
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.drawn.answers import ten_answers
from vlkit.drawn.draw import draw
from vlkit.drawn.questions import questions
from vlkit.drawn.scenes import sample_scene
from vlkit.errors import UserError
from vlkit.metrics.vqa import vqa_metrics
from vlkit.tasks.generation import beam_search
from vlkit.tasks.vqa.data import ImageQuestions, SoftTargets, answer_vocabulary, read_vocabulary
from vlkit.tasks.vqa.losses import answer_bce, answer_softmax

TRAIN, EVALUATE, PREDICT = (f"tasks/vqa/{name}.py" for name in ("train", "evaluate", "predict"))
SPLITS = {"train": 10, "val": 4, "test": 4, "hidden": 3}
SMALL = ("--fusion.width", 32, "--fusion.layers", 1, "--fusion.heads", 2)
QUICK = ("--epochs", 2, "--batch_size", 5, "--device", "cpu", "--data.min_questions", 1, *SMALL)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """A prepared dataset of drawn scenes with four or five questions each; the split ``hidden`` has no answers."""
    root = tmp_path_factory.mktemp("asked")
    rng = np.random.default_rng(0)
    splits: dict[str, list[dict]] = {split: [] for split in SPLITS}
    for split, count in SPLITS.items():
        for i in range(count):
            scene = sample_scene(rng, "demo")
            name = f"{split}{i}.png"
            draw(scene).save(root / name)
            for question in questions(scene, rng):
                number = len(splits[split]) + 1000 * list(SPLITS).index(split)
                record = {"id": f"vqa/{number}", "question_id": number, "image": name, "question": question.text}
                if split != "hidden":
                    record["answers"] = [given["answer"] for given in ten_answers(question, rng)]
                    record |= {"answer_type": question.answer_type, "multiple_choice_answer": question.answer}
                splits[split].append(record)
    write_dataset(root, name="asked", task="vqa", splits=splits, media_root=root, source="made for a test")
    return root


@pytest.fixture(scope="session")
def trained(dataset: Path, tmp_path_factory) -> Path:
    """A finished SHERL run on it."""
    folder = tmp_path_factory.mktemp("runs") / "sherl"
    call(TRAIN, "--data.root", dataset, "--output", folder, *QUICK)
    return folder


@pytest.fixture(scope="session")
def written(dataset: Path, tmp_path_factory) -> Path:
    """A finished run of the head that writes."""
    folder = tmp_path_factory.mktemp("runs") / "generate"
    call(TRAIN, "--data.root", dataset, "--output", folder, "--head.kind", "generate", *QUICK)
    return folder


def test_run_folder_holds_what_every_task_has(trained: Path):
    for name in ("config.yaml", "log.jsonl", "curves.png", "vlkit_adapter.json", "README.md"):
        assert (trained / name).stat().st_size > 0, name
    metrics = json.loads((trained / "metrics.json").read_text())
    assert set(metrics) >= {
        *("task", "base", "adapter", "split", "before", "after", "trainable_parameters", "total_parameters"),
        *("saved_activation_bytes", "peak_memory_bytes", "train_seconds", "examples_per_second", "seed", "versions"),
    }
    assert (metrics["task"], metrics["split"]) == ("vqa", "test") and "training answer" in metrics["before_is"]
    keys = {"accuracy", "accuracy_yes_no", "accuracy_number", "accuracy_other"}
    assert keys <= set(metrics["before"]) and keys <= set(metrics["after"])
    assert 0 < metrics["trainable_parameters"] < metrics["total_parameters"]
    assert set(json.loads((trained / "vlkit_adapter.json").read_text())["base"]) == {"image", "text"}


def test_saved_adapter_measures_as_it_did_in_training(trained: Path, written: Path, dataset: Path, tmp_path: Path):
    for run in (trained, written):
        call(EVALUATE, "--model", run, "--data.root", dataset, "--split", "test", "--json", tmp_path / "m.json")
        again = json.loads((tmp_path / "m.json").read_text())
        after = json.loads((run / "metrics.json").read_text())["after"]
        assert {key: again[key] for key in after} == pytest.approx(after)


def test_predictions_score_as_evaluated(trained: Path, dataset: Path, tmp_path: Path):
    call(PREDICT, "--model", trained, "--data.root", dataset, "--split", "test", "--json", tmp_path / "a.json")
    answers = json.loads((tmp_path / "a.json").read_text())
    records = Dataset.open(dataset, "vqa").records("test")
    assert [answer["question_id"] for answer in answers] == [record["question_id"] for record in records]
    given = {answer["question_id"]: answer["answer"] for answer in answers}
    metrics = vqa_metrics(given, {record["question_id"]: record["answers"] for record in records})
    assert metrics["accuracy"] == json.loads((trained / "metrics.json").read_text())["after"]["accuracy"]


def test_a_split_without_answers_is_predicted_but_not_scored(trained: Path, dataset: Path, tmp_path: Path):
    options = ("--model", trained, "--data.root", dataset, "--split", "hidden", "--json", tmp_path / "a.json")
    call(PREDICT, *options)
    answers = json.loads((tmp_path / "a.json").read_text())
    assert len(answers) == len(Dataset.open(dataset, "vqa").records("hidden"))
    assert all(set(answer) == {"question_id", "answer"} and isinstance(answer["answer"], str) for answer in answers)
    call(PREDICT, *options, "--format", "gqa")
    assert set(json.loads((tmp_path / "a.json").read_text())[0]) == {"questionId", "prediction"}
    with pytest.raises(UserError, match=r"question 3000 has no answers.*predict\.py"):
        call(EVALUATE, *options)


def test_pipeline_answers_alone_in_batches_and_from_threads(trained: Path, dataset: Path):
    model = vlkit.load(trained, device="cpu")
    first, second = dataset / "test0.png", Image.open(dataset / "test1.png")
    best = model.answer(first, "How many things are there?")
    assert len(best) == 5 and all(isinstance(answer, str) and 0 <= p <= 1 for answer, p in best)
    assert [p for _, p in best] == sorted((p for _, p in best), reverse=True)
    asked = ["How many things are there?", "Is there a cat?", "Is there a cat?"]
    together = model.answers([first, first, second], asked, k=3)
    alone = [model.answer(image, text, k=3) for image, text in zip([first, first, second], asked, strict=True)]
    for one, other in zip(together, alone, strict=True):
        assert [answer for answer, _ in one] == [answer for answer, _ in other]
        assert [p for _, p in one] == pytest.approx([p for _, p in other], abs=1e-5)
    found: dict[int, list] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: model.answers([first, first, second], asked, k=3)}))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own in found.values():  # batched with those of the others, which moves the last bits
        assert [[answer for answer, _ in one] for one in own] == [[answer for answer, _ in one] for one in together]
        assert [p for one in own for _, p in one] == pytest.approx([p for one in together for _, p in one], abs=1e-5)
    assert len(found) == 4
    assert model.answers([], []) == []
    with pytest.raises(UserError, match="blank"):
        model.answer(first, " ")
    with pytest.raises(ValueError, match="2 images and 1 questions"):
        model.answers([first, second], ["Is there a cat?"])


def test_blind_run_does_not_look(dataset: Path, tmp_path: Path):
    call(TRAIN, "--data.root", dataset, "--output", tmp_path / "run", *QUICK, "--head.blind", "true")
    assert not [name for name in load_file(tmp_path / "run" / "vlkit_adapter.safetensors") if name.startswith("image")]
    model = vlkit.load(tmp_path / "run", device="cpu")
    question = "How many things are there?"
    assert model.answer(dataset / "test0.png", question) == model.answer(dataset / "test1.png", question)


@pytest.mark.parametrize("kind", ["linear", "lora", "full", "bitfit"])
def test_other_methods_train_save_and_load(kind: str, dataset: Path, tmp_path: Path):
    # T5 has no biases.
    text = ("--text_base", "clip") if kind == "bitfit" else ()
    call(TRAIN, "--data.root", dataset, "--output", tmp_path / "run", "--adapter.kind", kind, *QUICK, *text)
    assert len(vlkit.load(tmp_path / "run", device="cpu").answer(dataset / "test0.png", "Is there a cat?", k=2)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--text_base", "clip", "--adapter.late", 2, "--data.per_picture", 2, "--precision", "bf16-true"),
        ("--image_size", 48, "--fusion.update_image", "true", "--data.augment", "crop"),
        ("--head.loss", "softmax", "--fusion.neck", 1, "--precision", "bf16-mixed"),
        ("--head.kind", "generate", "--adapter.kind", "lora", "--fusion.checkpointing", "true"),
        ("--head.kind", "generate", "--head.blind", "true", "--adapter.init", "published"),
        ("--adapter.kind", "lst", "--adapter.start", "fisher", "--adapter.fisher_examples", 3, "--head.blind", "true"),
    ],
)
def test_options_run(options: tuple, dataset: Path, tmp_path: Path):
    call(TRAIN, "--data.root", dataset, "--output", tmp_path / "run", *QUICK, *options)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert vlkit.load(tmp_path / "run", device="cpu").answer(dataset / "test0.png", "Is there a cat?")


def test_written_answers_are_the_most_probable(written: Path, dataset: Path):
    model = vlkit.load(written, device="cpu")
    answerer, question = model.answerer, "What color is the cat?"
    batch = (answerer.transform(Image.open(dataset / "test0.png"))[None], answerer.text.tokenize([question]))
    with torch.no_grad():
        memory = answerer.model.memory(*batch, torch.tensor([0]))
    special = (answerer.text.base.start_id, answerer.text.base.tokenizer.eos_token_id, answerer.text.pad_id)
    ids, scores = beam_search(answerer.model, memory, *special, beams=4, max_tokens=3)
    assert ids.shape[:2] == (1, 4) and scores[0].tolist() == sorted(scores[0].tolist(), reverse=True)
    for row, score in zip(ids[0], scores[0], strict=True):  # each one's score by teacher forcing
        start = torch.cat([torch.tensor([special[0]]), row[:-1]])[None]
        with torch.no_grad():
            steps = answerer.model.decode(memory, start)[0].log_softmax(-1)[torch.arange(len(row)), row]
        end = (row == special[1]).nonzero()
        length = int(end[0]) + 1 if len(end) else len(row)
        assert float(steps[:length].sum()) == pytest.approx(float(score), abs=1e-4)
    greedy, _ = beam_search(answerer.model, memory, *special, beams=1, max_tokens=1)
    with torch.no_grad():
        assert int(greedy) == int(answerer.model.decode(memory, torch.tensor([[special[0]]]))[0, 0].argmax())


def test_gradients_reach_what_trains_and_nothing_else(dataset: Path):
    from vlkit.adapters.sherl.options import SherlOptions
    from vlkit.encoders.load import load_base
    from vlkit.encoders.text_side import text_side
    from vlkit.tasks.fusion import FusionOptions
    from vlkit.tasks.generation import shift_right, token_loss
    from vlkit.tasks.vqa.heads import ClassifyOptions, GenerateOptions
    from vlkit.tasks.vqa.model import build_model

    for head in (ClassifyOptions(), GenerateOptions(queries=2)):
        base = load_base("tiny")
        text = text_side("tiny", base)
        model = build_model(base, text, SherlOptions(), head, FusionOptions(32, 1, 2), 5).train()
        batch = (torch.randn(2, 3, 96, 96), text.tokenize(["Is it red?", "How many?"]), torch.tensor([1, 0]))
        if head.kind == "classify":
            loss = answer_bce(model(*batch), torch.tensor([[1.0, 0, 0, 0, 0.3], [0, 0, 0, 0, 0]]))
        else:
            targets = text.tokenize(["yes", "two dogs"])
            loss = token_loss(model(*batch, shift_right(targets, 0)), targets, 0)
        loss.backward()
        idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert idle == []
        assert all(p.grad is None for tower in (base.image, text.encoder) for p in tower.parameters())


def test_soft_targets_and_loss_are_those_of_the_protocol():
    targets = SoftTargets(["no", "yes"])([["yes"] * 3 + ["no"] + ["maybe"] * 6, ["maybe"] * 10])
    torch.testing.assert_close(targets, torch.tensor([[0.3, 0.9], [0.0, 0.0]]))
    logits = torch.tensor([[0.5, -1.0], [2.0, 0.0]])
    by_hand = sum(
        float(-t * torch.tensor(x).sigmoid().log() - (1 - t) * torch.tensor(-x).sigmoid().log())
        for x, t in zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True)
    )
    assert float(answer_bce(logits, targets)) == pytest.approx(by_hand / 2, abs=1e-5)
    shares = torch.tensor([0.25, 0.75]) @ -logits[0].log_softmax(0)  # the second question says nothing
    assert float(answer_softmax(logits, targets)) == pytest.approx(float(shares), abs=1e-5)


def test_vocabulary_is_counted_or_read(dataset: Path, tmp_path: Path):
    opened = Dataset.open(dataset, "vqa")
    everything = answer_vocabulary(opened, ["train", "hidden"], 1)
    often = answer_vocabulary(opened, ["train"], 3)
    assert set(often) < set(everything) and {"yes", "no"} <= set(often)
    with pytest.raises(UserError, match="min_questions 9999"):
        answer_vocabulary(opened, ["train"], 9999)
    path = tmp_path / "answers.json"
    path.write_text('{"no": 1, "yes": 0}')
    assert read_vocabulary(path) == ["yes", "no"]
    for content, message in (
        ("[]", "neither a list"),
        ('["a", "a"]', "occurs twice"),
        ('{"a": 1}', "labels are not 0"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_vocabulary(path)


def test_a_image_is_an_example_with_its_questions(dataset: Path):
    opened = Dataset.open(dataset, "vqa")
    examples = ImageQuestions(opened, "train", lambda image: torch.zeros(3, 4, 4))
    assert len(examples) == SPLITS["train"] and sum(map(len, examples.groups)) == len(opened.records("train"))
    _, group = ImageQuestions(opened, "train", lambda image: torch.zeros(3, 4, 4), per_picture=2)[0]
    assert len(group) == 2 and {record["image"] for record in group} == {"train0.png"}
    with pytest.raises(UserError, match="has no answers"):
        ImageQuestions(opened, "hidden", lambda image: image)


@pytest.mark.parametrize(
    ("script", "words", "named"),
    [
        (TRAIN, ("--text_base", "no/such"), "text base 'no/such'"),
        (TRAIN, ("--head.kind", "generate", "--text_base", "clip"), "--text_base clip has no decoder"),
        (TRAIN, ("--head.kind", "generate", "--adapter.kind", "linear"), "--adapter.kind linear"),
        (TRAIN, ("--adapter.handoff", "pooled"), "--adapter.handoff pooled"),
        (TRAIN, ("--data.train", "nope"), 'no split "nope"'),
        (TRAIN, ("--fusion.heads", 5), "--fusion.heads 5"),
        (PREDICT, ("--model", "nowhere", "--image", "x.png"), "--question TEXT is missing"),
    ],
)
def test_wrong_input_is_named(script: str, words: tuple, named: str, dataset: Path, tmp_path: Path):
    more = ("--output", tmp_path / "run") if script == TRAIN else ()
    with pytest.raises(UserError, match=named):
        call(script, "--data.root", dataset, *more, *words)


@pytest.mark.slow
def test_bad_records_are_named_and_exit_with_2(dataset: Path, tmp_path: Path):
    manifest = json.loads((dataset / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**manifest, "media_root": str(dataset)}))
    for split in SPLITS:
        (tmp_path / f"{split}.jsonl").write_bytes((dataset / f"{split}.jsonl").read_bytes())
    good = [json.loads(line) for line in (dataset / "train.jsonl").read_text().splitlines()]

    def write(changed: dict) -> None:
        lines = [*good[:2], changed, *good[3:]]
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    write({key: value for key, value in good[2].items() if key != "image"})
    with pytest.raises(UserError, match=r'train\.jsonl:3: field "image" is missing'):
        call(TRAIN, "--data.root", tmp_path, "--output", tmp_path / "run")
    write({**good[2], "answers": good[2]["answers"][:9]})
    done = launch(TRAIN, "--data.root", tmp_path, "--output", tmp_path / "other")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "train.jsonl:3" in done.stderr and "got 9 answers, expected a list of 10" in done.stderr


def test_predict_answers_a_single_question(trained: Path, dataset: Path, capsys):
    call(PREDICT, "--model", trained, "--image", dataset / "test0.png", "--question", "Is there a cat?", "--k", 2)
    assert len(capsys.readouterr().out.splitlines()) == 2
    with pytest.raises(UserError, match=r"--image .*nothing\.png: missing"):
        call(PREDICT, "--model", trained, "--image", dataset / "nothing.png", "--question", "Is there a cat?")


def test_other_data_is_measured_without_and_with_the_adapter(trained: Path, dataset: Path, tmp_path: Path):
    options = ("--model", trained, "--data.root", dataset, "--split", "test", "--json", tmp_path / "m.json")
    call(EVALUATE, *options, "--mix", 0)
    without = json.loads((tmp_path / "m.json").read_text())
    call(EVALUATE, *options, "--also", dataset)
    found = json.loads((tmp_path / "m.json").read_text())
    (other,) = found["also"].values()
    assert other["split"] == "test" and other["root"] == str(dataset)
    assert other["after"]["accuracy"] == pytest.approx(found["accuracy"])
    assert other["before"]["accuracy"] == pytest.approx(without["accuracy"])
    with pytest.raises(UserError, match=r"dataset\.json"):
        call(EVALUATE, *options, "--also", tmp_path)


def test_a_new_classifier_is_narrow_and_merges_behind_the_last_block_and_an_old_folder_keeps_what_it_has():
    from vlkit.adapters.sherl.options import SherlOptions
    from vlkit.encoders.load import load_base
    from vlkit.tasks.vqa.heads import ClassifyOptions, GenerateOptions
    from vlkit.tasks.vqa.model import with_defaults_of

    assert with_defaults_of(ClassifyOptions(), SherlOptions()) == SherlOptions(flavour="gated", late=0, reduction=8)
    assert with_defaults_of(ClassifyOptions(), SherlOptions(late=2, reduction=4, dropout=0.2)) == SherlOptions(
        late=2, reduction=4, dropout=0.2
    )
    assert with_defaults_of(GenerateOptions(), SherlOptions()) == SherlOptions()
    old = SherlOptions()._tokens(load_base("tiny").image)  # what a folder means that records neither
    assert old.late == 1 and 2 * old.reducers[0].proj.out_features == old.reducers[0].proj.in_features
