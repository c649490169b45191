"""Training: exact resume after any kill, good manners when interrupted, and the same numbers on one process or two."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from helpers import toy_run
from helpers.toy_run import ToyConfig
from vlkit.cli.config import parse
from vlkit.engine import checkpoint, run_folder
from vlkit.engine.distributed import make_fabric
from vlkit.engine.hardware import fast_bfloat16
from vlkit.engine.loader import EpochLoader
from vlkit.engine.optim import lr_factor, make_optimizer
from vlkit.engine.run import Run
from vlkit.engine.run_folder import RunFolder
from vlkit.engine.training import Training
from vlkit.errors import UserError

# A server that has imported everything forks each run: a run then starts in milliseconds, and never shares this
# process's threads or random state.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["vlkit.engine.fit"])


class Child:
    """A toy run in a process of its own."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.messages = folder.with_suffix(".stderr")
        self.messages.unlink(missing_ok=True)
        arguments = ("--output", str(folder), *arguments)
        self.process = SERVER.Process(target=toy_run.launch, args=(list(arguments), str(self.messages), environment))
        self.process.start()

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 600) -> int:
        self.process.join(seconds)
        assert self.process.exitcode is not None, "the run hangs"
        return self.process.exitcode

    @property
    def text(self) -> str:
        return self.messages.read_text() if self.messages.exists() else ""


def finish(folder: Path, *arguments: str, **environment: str) -> Child:
    child = Child(folder, *arguments, **environment)
    assert child.wait() == 0, child.text
    return child


def wait_until(condition: Callable[[], bool], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def log_of(folder: Path) -> list[dict]:
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def last_step(folder: Path) -> int:
    """The last step in the log; its last line may be half written."""
    path = folder / "log.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def everything(folder: Path) -> dict[str, Tensor]:
    """Trained, best and optimizer tensors at the end of the run, and the adapter."""
    state = load_file(folder / "checkpoint" / checkpoint.STATE_FILE)
    return state | {f"adapter/{k}": t for k, t in load_file(folder / checkpoint.MODEL_FILE).items()}


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    differing = [name for name in expected if not torch.equal(actual[name], expected[name])]
    assert not differing


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    finish(folder)
    return folder


def test_the_toy_is_hard_enough(reference):
    state = everything(reference)
    assert {"trained/norm.running_mean", "trained/gate", "optimizer/out.weight/exp_avg_sq"} <= state.keys()
    assert not any("base" in name for name in state)
    # The best weights are not the last ones, so both must survive a resume.
    assert not torch.equal(state["best/out.weight"], state["trained/out.weight"])
    assert torch.equal(state["best/out.weight"], state["adapter/out.weight"])


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed(tmp_path):
    """SIGKILL at a dozen random moments; the weights come out bit for bit the same, and no log line is there twice."""
    options = ("--epochs", "8", "--checkpoint_every", "2")
    folder, whole, moments, resumed_from = tmp_path / "run", tmp_path / "whole", random.Random(7), []
    finish(whole, *options)
    for further in (0, 3, 1, 2, 0, 1, 3, 2, 0, 1, 2, 1):
        child = Child(folder, *options, "--resume", TOY_STEP_SECONDS="0.06", TOY_EVALUATION_SECONDS="0.06")
        wait_until(lambda child=child: "parameters train" in child.text)
        target = checkpoint.load(folder / "checkpoint").progress.step + further
        wait_until(lambda target=target: last_step(folder) >= target)
        child.process.join(moments.uniform(0, 0.1))  # somewhere in a step, an evaluation or a write
        child.signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "the run ended before it was killed"
        resumed_from.append(checkpoint.load(folder / "checkpoint").progress.step)
    assert len(set(resumed_from)) >= 4, "too many kills fell on the same step"
    finish(folder, *options, "--resume")
    assert_same_bits(everything(folder), everything(whole))
    logs = [log_of(run) for run in (folder, whole)]
    assert [line["step"] for line in logs[0] if "split" not in line] == list(range(1, 41))
    for key in ("step", "loss", "score"):
        assert [line.get(key) for line in logs[0]] == [line.get(key) for line in logs[1]]
    assert not list((folder / "checkpoint").glob(".*")), "a part-written checkpoint was left behind"


def test_killed_while_starting(reference, tmp_path):
    """Before the first checkpoint there is nothing to go on from; --resume then starts from the beginning."""
    folder = tmp_path / "run"
    for seconds in (0.0, 0.05, 0.1):
        child = Child(folder, "--resume", TOY_STEP_SECONDS="0.2")
        child.process.join(seconds)
        child.signal(signal.SIGKILL)
        child.wait()
    finish(folder, "--resume")
    assert_same_bits(everything(folder), everything(reference))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_writes_a_checkpoint_and_the_run_goes_on(tmp_path, number, code):
    """With workers, in the middle of an epoch, with accumulation: the whole process group gets the signal."""
    options = ("--accumulate", "2")
    finish(tmp_path / "whole", *options)
    folder = tmp_path / "run"
    child = Child(folder, *options, "--workers", "2", TOY_STEP_SECONDS="0.1")
    wait_until(lambda: last_step(folder) >= 2)
    for process in Path(f"/proc/{child.process.pid}/task").glob("*/children"):
        for worker in process.read_text().split():
            os.kill(int(worker), number)
    child.signal(number)
    assert child.wait() == code, child.text
    assert "Traceback" not in child.text
    done = checkpoint.load(folder / "checkpoint").progress.step
    assert done == max(line["step"] for line in log_of(folder)) > 0
    finish(folder, *options, "--resume")
    assert_same_bits(everything(folder), everything(tmp_path / "whole"))


def test_interrupt_does_not_wait_for_an_evaluation(reference, tmp_path):
    folder = tmp_path / "run"
    child = Child(folder, TOY_EVALUATION_SECONDS="60")
    wait_until(lambda: last_step(folder) == 5)
    time.sleep(0.3)
    child.signal(signal.SIGINT)
    assert child.wait(300) == 130
    progress = checkpoint.load(folder / "checkpoint").progress
    assert (progress.step, progress.evaluated) == (5, 0)
    finish(folder, "--resume")
    assert_same_bits(everything(folder), everything(reference))


def test_a_signal_can_end_training_with_an_adapter_of_what_was_trained(tmp_path):
    folder = tmp_path / "run"
    child = Child(folder, "--on_stop", "finish", TOY_STEP_SECONDS="0.2")
    wait_until(lambda: last_step(folder) >= 2)
    child.signal(signal.SIGTERM)
    assert child.wait() == 0, child.text
    state = checkpoint.load(folder / "checkpoint")
    assert 2 <= state.progress.step == state.progress.evaluated < 20
    saved = load_file(folder / checkpoint.MODEL_FILE)
    assert saved.keys() == state.best.keys() and all(torch.equal(saved[name], state.best[name]) for name in saved)
    assert not torch.equal(saved["out.weight"], toy_run.ToyModel(True).out.weight)
    finish(folder, "--on_stop", "finish", "--resume")
    assert last_step(folder) == 20


def test_second_signal_leaves_at_once(tmp_path):
    child = Child(tmp_path / "run", TOY_STEP_SECONDS="60")
    wait_until(lambda: (tmp_path / "run" / "checkpoint" / checkpoint.STATE_FILE).exists())
    time.sleep(0.5)
    child.signal(signal.SIGINT)
    wait_until(lambda: "stopping" in child.text)
    child.signal(signal.SIGINT)
    assert child.wait(300) == 130


def test_loss_that_is_no_number_stops_the_run(tmp_path):
    child = Child(tmp_path / "run", "--break_at", "2")
    assert child.wait() == 2
    last = child.text.splitlines()[-1]
    assert last.startswith("error: step 11: loss is nan") and "--lr" in last and "Traceback" not in child.text
    state = load_file(tmp_path / "run" / "checkpoint" / checkpoint.STATE_FILE)
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert max(line["step"] for line in log_of(tmp_path / "run")) == 10


@pytest.mark.parametrize("workers", ["0", "2"])
def test_error_of_the_data_is_one_line(tmp_path, workers):
    child = Child(tmp_path / "run", "--bad_example", "5", "--workers", workers)
    assert child.wait() == 2
    assert child.text.splitlines()[-1] == "error: example 5: cannot be read, delete it"
    assert "Traceback" not in child.text


def test_what_changes_no_number(reference, tmp_path):
    """Workers, the pace of checkpoints and how often one looks: the last weights stay the same to the bit."""
    finish(tmp_path / "run", "--workers", "2", "--checkpoint_every", "3", "--evaluate_every", "3", "--log_every", "7")
    actual, expected = everything(tmp_path / "run"), everything(reference)
    last = [name for name in expected if name.startswith(("trained/", "optimizer/"))]
    assert_same_bits({name: actual[name] for name in last}, {name: expected[name] for name in last})
    assert [line["step"] for line in log_of(tmp_path / "run") if "split" in line] == [15, 20]


def test_another_seed_gives_other_weights(reference, tmp_path):
    finish(tmp_path / "run", "--seed", "1")
    actual, expected = everything(tmp_path / "run"), everything(reference)
    assert not torch.equal(actual["trained/out.weight"], expected["trained/out.weight"])


def test_mixed_precision(reference, tmp_path):
    finish(tmp_path / "run", "--precision", "bf16-mixed")
    actual, expected = everything(tmp_path / "run"), everything(reference)
    assert actual["trained/out.weight"].dtype == torch.float32
    assert not torch.equal(actual["trained/out.weight"], expected["trained/out.weight"])
    losses = [[line["loss"] for line in log_of(run) if "split" not in line] for run in (tmp_path / "run", reference)]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


def test_batches_accumulate_to_the_large_batch(tmp_path):
    options = ("--noise", "false", "--examples", "40")
    finish(tmp_path / "large", *options)
    finish(tmp_path / "small", *options, "--batch_size", "4", "--accumulate", "2")
    large, small = everything(tmp_path / "large"), everything(tmp_path / "small")
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=0, atol=1e-6)


# --- continuing ------------------------------------------------------------------------------------------------------


def call(folder: Path, *arguments: str) -> None:
    """Run the toy in this process."""
    toy_run.main(parse(ToyConfig, ["--output", str(folder), *arguments]))


def test_continuing_a_finished_run_reports_it_again(reference, caplog):
    before, log = everything(reference), (reference / "log.jsonl").read_text()
    caplog.set_level("INFO")
    call(reference, "--resume")
    assert "the run is finished (20 steps)" in caplog.text
    assert_same_bits(everything(reference), before)
    assert (reference / "log.jsonl").read_text() == log


def test_a_run_is_not_overwritten(reference):
    with pytest.raises(UserError, match=r"already holds a run; add --resume"):
        call(reference)


def test_an_adapter_without_a_checkpoint_is_not_overwritten(reference, tmp_path):
    copy = shutil.copytree(reference, tmp_path / "copy")
    (copy / "vlkit_adapter.json").write_text("{}")
    shutil.rmtree(copy / "checkpoint")
    with pytest.raises(UserError, match="holds an adapter and no checkpoint to continue from"):
        call(copy, "--resume")
    for content in (b"{", b"x", b"\xff\xfe\xff"):
        damaged = shutil.copytree(reference, tmp_path / content.hex())
        (damaged / "config.yaml").write_bytes(content)
        with pytest.raises(UserError, match=r"config\.yaml.*(damaged|not valid|not UTF)"):
            call(damaged, "--resume")


def test_changed_config_is_named(reference):
    with pytest.raises(UserError, match=r"lr was 0.05, now 0.1, weight_decay was 0.01, now 0.5 in .*config.yaml"):
        call(reference, "--resume", "--lr", "0.1", "--weight_decay", "0.5", "--log_every", "3")


def test_changed_data_are_named(reference, monkeypatch):
    monkeypatch.setattr(toy_run.ToyData, "__len__", lambda self: 50)
    with pytest.raises(UserError, match=r"examples was 43, now 50"):
        call(reference, "--resume")


def test_resume_needs_a_folder():
    with pytest.raises(UserError, match="--resume needs --output"):
        toy_run.main(parse(ToyConfig, ["--resume"]))


@pytest.mark.parametrize("bad", [("--epochs", "0"), ("--lr", "-1"), ("--warmup", "2"), ("--seed", "-3")])
def test_impossible_flags_are_named(bad):
    with pytest.raises(UserError, match=bad[0]):
        parse(ToyConfig, list(bad))


# --- processes -------------------------------------------------------------------------------------------------------


def start_several(world: int, folder: Path, *arguments: str, **environment: str) -> list[Child]:
    """Start a run of ``world`` gloo processes with the environment that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "TORCHELASTIC_RUN_ID": "toy"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= environment
    children = []
    for rank in map(str, range(world)):
        # With a process per node each is the first of its own.
        place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": "0"}
        if shared["LOCAL_WORLD_SIZE"] == "1":
            place |= {"LOCAL_RANK": "0", "GROUP_RANK": rank}
        child = Child(folder, *arguments, **shared, **place)
        wait_until(child.messages.exists)
        child.messages = child.messages.rename(folder.with_suffix(f".{rank}"))
        children.append(child)
    return children


def finish_two(folder: Path, *arguments: str, **environment: str) -> None:
    """Run two processes to their end."""
    for child in start_several(2, folder, *arguments, **environment):
        assert child.wait() == 0, child.text


def test_two_processes_train_like_one_without_gradients(tmp_path):
    """MeZO: both move along the same direction, by the mean of their slopes."""
    options = ("--noise", "false", "--optimizer", "mezo", "--lr", "0.01", "--precision", "64-true", "--epochs", "2")
    finish(tmp_path / "one", *options)
    finish_two(tmp_path / "two", *options)
    one, two = everything(tmp_path / "one"), everything(tmp_path / "two")
    assert one.keys() == two.keys() and len(one["optimizer/mezo/slopes"]) == 10
    for name in one:
        # A slope is a difference of two losses in single precision over 2 eps.
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=5e-4 if "slopes" in name else 1e-5)


def test_two_processes_train_like_one(tmp_path):
    options = ("--noise", "false", "--accumulate", "2")
    finish(tmp_path / "one", *options)
    finish_two(tmp_path / "two", *options)
    one, two = everything(tmp_path / "one"), everything(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6)
    first, second = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert len(first) == len(second) == 16
    for line, other in zip(first, second, strict=True):
        for key in line.keys() & {"loss", "score", "gradient_norm", "lr"}:
            assert other[key] == pytest.approx(line[key], abs=1e-5)


def test_processes_hold_the_same_weights(tmp_path):
    """With batch norm the statistics differ between the parts of a batch; they are averaged, like the gradients."""
    finish_two(tmp_path / "run")
    assert_same_bits(*(load_file(tmp_path / "run" / f"weights-{rank}.safetensors") for rank in (0, 1)))


@pytest.mark.slow
def test_other_numbers_of_processes_go_on(tmp_path):
    """Two processes, then one, then four: the batches are those of an uninterrupted run, and so are the weights."""
    options, batch = ("--noise", "false"), 8
    finish(tmp_path / "whole", *options, TOY_READ=str(tmp_path / "read"))
    expected = [int(line) for line in (tmp_path / "read.0").read_text().split()]
    assert len(expected) == 20 * batch

    step = 0
    for world, last in ((2, 7), (1, 12), (4, 20)):
        read = tmp_path / f"read-by-{world}"
        more = ("--resume",) if step else ()
        given = {"TOY_READ": str(read)} | ({"TOY_LAST_STEP": str(last)} if last < 20 else {})
        children = start_several(world, tmp_path / "run", *options, *more, **given)
        assert {child.wait() for child in children} == ({143} if last < 20 else {0}), children[0].text
        assert not step or f"continuing at step {step} of 20" in children[0].text
        shares = [[int(line) for line in read.with_suffix(f".{rank}").read_text().split()] for rank in range(world)]
        part = batch // world
        places = range(0, (last - step) * part, part)
        joined = [index for place in places for share in shares for index in share[place : place + part]]
        assert joined == expected[step * batch : last * batch], f"{world} processes had other batches"
        assert {len(share) for share in shares} == {(last - step) * part}
        step = last
    assert "continuing with 4 processes instead of 1" in children[0].text
    actual, whole = everything(tmp_path / "run"), everything(tmp_path / "whole")
    assert actual.keys() == whole.keys()
    for name in whole:
        torch.testing.assert_close(actual[name], whole[name], rtol=0, atol=1e-6)


def test_two_nodes_train_like_two_processes_of_one(tmp_path):
    finish_two(tmp_path / "one")
    finish_two(tmp_path / "two", LOCAL_WORLD_SIZE="1")
    assert_same_bits(everything(tmp_path / "two"), everything(tmp_path / "one"))


def test_a_run_folder_that_another_node_does_not_share_is_refused(tmp_path, monkeypatch):
    fabric = make_fabric("cpu", "32-true", 0)
    monkeypatch.setattr(run_folder, "node_count", lambda: 2)
    run_folder._require_shared(tmp_path, fabric)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(run_folder, "SHARED_SECONDS", 0.0)
    monkeypatch.setattr(type(fabric), "is_global_zero", False)  # as a process of the other node: no file appears
    with pytest.raises(UserError, match=r"cannot see what process 0 wrote there, .* that all nodes share"):
        run_folder._require_shared(tmp_path, fabric)


@pytest.mark.slow
def test_as_a_script(tmp_path):
    """The real thing once: a command line, Ctrl-C, and the same command with --resume."""
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        str(root / "tests" / "helpers" / "toy_run.py"),
        "--output",
        str(tmp_path / "run"),
        "--epochs",
        "2",
    ]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    slow = subprocess.Popen(command, env={**environment, "TOY_STEP_SECONDS": "0.2"}, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: last_step(tmp_path / "run") >= 2)
    slow.send_signal(signal.SIGINT)
    messages = slow.communicate(timeout=600)[1]
    assert slow.returncode == 130 and "continue with --resume" in messages and "Traceback" not in messages
    again = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0 and "continuing at step" in again.stderr
    assert [line["step"] for line in log_of(tmp_path / "run") if "split" not in line] == list(range(1, 11))


# --- parts -----------------------------------------------------------------------------------------------------------


def test_schedule():
    factors = [lr_factor("cosine", step, 10, 2) for step in range(11)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5) and factors[10] == pytest.approx(0)
    assert factors[2:] == sorted(factors[2:], reverse=True)
    assert lr_factor("cosine", 0, 1, 0) == 1.0 and lr_factor("cosine", 0, 1, 1) == 1.0
    assert [lr_factor("linear", step, 10, 2) for step in (0, 1, 2, 6, 10)] == [0.5, 1.0, 1.0, 0.5, 0.0]
    assert [lr_factor("constant", step, 10, 2) for step in (0, 1, 2, 9)] == [0.5, 1.0, 1.0, 1.0]
    steps = [lr_factor("step", step, 25, 1, (0.6, 0.8)) for step in (0, 1, 14, 15, 19, 20, 24)]
    assert steps == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("share", [0.0, 1.0, 15.0, math.nan])
def test_decay_is_at_shares_of_the_run(share):
    with pytest.raises(UserError, match=r"--decay_at .* give shares of the run"):
        ToyConfig(schedule="step", decay_at=(0.5, share))


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_only_matrices_decay(kind):
    parameters = {
        "w": nn.Parameter(torch.ones(2, 2)),
        "b": nn.Parameter(torch.ones(2)),
        "g": nn.Parameter(torch.ones(())),
    }
    optimizer = make_optimizer(parameters, lr=1.0, weight_decay=0.1, kind=kind)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(parameters["w"], torch.tensor(0.9))
    assert all(torch.equal(parameters[name], torch.ones_like(parameters[name])) for name in "bg")


def test_nothing_to_train_is_an_error(tmp_path):
    fabric = make_fabric("cpu", "32-true", 0)
    model = fabric.setup_module(nn.Linear(2, 2).requires_grad_(False))
    loader = EpochLoader(range(8), 4, 0)
    with pytest.raises(ValueError, match="nothing to train"):
        Training(Run(ToyConfig(), "toy", fabric, RunFolder(tmp_path)), model, loader, "score")


def test_loader_order():
    loader = EpochLoader(range(10), batch_size=4, seed=3)
    keys = list(loader.keys(0, 6))
    assert len(loader) == 2 and len(keys) == 6
    epochs = [[index for batch in keys[first : first + 2] for _, index in batch] for first in (0, 2, 4)]
    assert all(len(set(epoch)) == 8 for epoch in epochs), "an example came twice in an epoch"
    assert len({tuple(epoch) for epoch in epochs}) == 3, "epochs repeat their order"
    assert {index for epoch in epochs for index in epoch} == set(range(10)), "the same examples are always left out"
    assert list(loader.keys(3, 6)) == keys[3:], "what lies before the start matters"


def test_loader_splits_batches_between_processes():
    whole = EpochLoader(range(22), batch_size=6, seed=0)
    parts = [EpochLoader(range(22), batch_size=6, seed=0, rank=rank, world=3) for rank in range(3)]
    joined = [a + b + c for a, b, c in zip(*(loader.keys(0, 9) for loader in parts), strict=True)]
    assert joined == list(whole.keys(0, 9))


def test_loader_of_few_examples():
    assert [len(batch) for batch in EpochLoader(range(3), batch_size=8, seed=0).keys(0, 4)] == [3, 3, 3, 3]
    assert EpochLoader(range(5), batch_size=8, seed=0, world=2).batch_size == 4
    with pytest.raises(UserError, match="too few"):
        EpochLoader(range(1), batch_size=8, seed=0, world=2)
    with pytest.raises(UserError, match="--batch_size 8 does not split evenly between 3 processes"):
        EpochLoader(range(100), batch_size=8, seed=0, world=3)


def test_example_depends_on_its_place_alone():
    data = toy_run.ToyData(ToyConfig(examples=16))
    inputs = {}
    for workers, start in ((0, 0), (0, 3), (2, 1)):
        torch.rand(start + 1)  # what was drawn before must not matter
        loader = EpochLoader(data, 4, 5, workers=workers)
        for keys, batch in zip(loader.keys(start, 8), loader.batches(start, 8), strict=True):
            for key, row in zip(keys, batch[0], strict=True):
                assert torch.equal(inputs.setdefault(key, row), row)
    assert len(inputs) == 32
    assert len({tuple(row.tolist()) for row in inputs.values()}) == 32, "an epoch repeats the noise of another"


@pytest.mark.parametrize(
    ("capabilities", "fast"), [({}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)]
)
def test_bf16_autocast_only_where_the_cpu_has_instructions_for_it(monkeypatch, capabilities, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    with fast_bfloat16(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if fast else torch.float32)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has the device")
def test_a_missing_gpu_of_a_mac_is_one_sentence() -> None:
    with pytest.raises(UserError, match="--device mps: no GPU of a Mac found"):
        make_fabric("mps")
