"""Command lines: flags, YAML and kinds become a config; mistakes become one line that names the key."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from vlkit.cli.config import about, kinds, parse, positional, repeated, run, to_yaml
from vlkit.data.images import MediaError
from vlkit.errors import UserError
from vlkit.files import write_json


@dataclass
class Sherl:
    """Options of one kind."""

    kind: Literal["sherl"] = "sherl"
    reduction: int = 8
    """Width is divided by this."""
    layers: tuple[int, ...] | None = None
    """Depths to tap."""


@dataclass
class Lora:
    """Options of another kind."""

    kind: Literal["lora"] = "lora"
    rank: int = 4
    """Rank of the update."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank {self.rank} must be at least 1")


@dataclass
class Dora(Lora):
    """Shares an option with another kind."""

    kind: Literal["dora"] = "dora"


@dataclass
class Data:
    """Nested."""

    root: Path | None = None
    """Folder; 100 % of it is read."""
    split: str = "train"


@dataclass
class Base:
    """What all scripts share."""

    epochs: int = 3
    """Passes over the data."""
    lr: float = 1e-4
    resume: bool = False


ADAPTERS = {"sherl": Sherl, "lora": Lora, "dora": Dora}


@dataclass
class Config(Base):
    """Train a thing.

    This second paragraph is not part of the help.
    """

    epochs: int = 5
    name: str | None = None
    precision: Literal["auto", "32-true"] = "auto"
    files: list[Path] = field(default_factory=list)
    data: Data = field(default_factory=lambda: Data(split="val"))
    adapter: Any = kinds(ADAPTERS, "sherl")


@dataclass
class Folder:
    """Needs things."""

    root: Path = positional()
    """Where."""
    output: Path = field(kw_only=True)


def message(*words: str, config_class: type = Config) -> str:
    with pytest.raises(UserError) as caught:
        parse(config_class, list(words))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "given.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_defaults():
    assert parse(Config, []) == Config(epochs=5, data=Data(None, "val"), adapter=Sherl())


def test_flags_have_the_types_of_their_fields():
    config = parse(
        Config,
        ["--epochs", "7", "--lr=1e-3", "--data.root", "some/where", "--name", "12", "--adapter.layers", "0", "2"],
    )
    assert config == Config(
        epochs=7, lr=1e-3, data=Data(Path("some/where"), "val"), name="12", adapter=Sherl(layers=(0, 2))
    )
    assert isinstance(config.lr, float) and isinstance(parse(Config, ["--lr", "3"]).lr, float)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--resume"], True),
        (["--resume", "--epochs", "2"], True),
        (["--resume", "true"], True),
        (["--resume", "false"], False),
        (["--resume=false"], False),
        ([], False),
    ],
)
def test_switch(words, value):
    assert parse(Config, words).resume is value


@pytest.mark.parametrize(
    "words", [["--files", "a b", "c", "--epochs", "2"], ["--epochs", "2", "--files", '["a b", "c"]']]
)
def test_list(words):
    assert parse(Config, words).files == [Path("a b"), Path("c")]


def test_last_flag_counts():
    assert parse(Config, ["--epochs", "2", "--epochs", "4"]).epochs == 4


YAML_WORDS = (
    "#sunset|&co|*x|!t|~|null|None|yes|true|1e3|010|- a|{a|[b]|'x|\"|: |a: b|12:30|%|@|`|>|2024-01-01| x |caf\udce9"
)


@pytest.mark.parametrize("word", [*YAML_WORDS.split("|"), "|", "-h"])
def test_words_of_text_flags_are_taken_literally(word):
    config = parse(Config, ["--name", word, "--data.root", word, "--files", word, "x", "--data.split", word])
    assert (config.name, config.data.split) == (word, word)
    assert (config.data.root, config.files) == (Path(word), [Path(word), Path("x")])
    assert parse(Config, ["--files", word]).files == [Path(word)]


@pytest.mark.parametrize("word", YAML_WORDS.split("|"))
def test_words_without_a_flag_are_taken_literally(word):
    assert parse(Folder, [word, "--output=" + word]) == Folder(Path(word), output=Path(word))


@dataclass
class Switched:
    """Flags beside text."""

    cache: bool | Path = False
    limit: str | None = "10"
    """Size; null means none."""
    workers: int | None = 3
    seconds: float | None = 1.0
    words: list[str] = field(default_factory=list)


def test_null_means_none_for_numbers_and_where_the_help_says_so():
    assert parse(Switched, ["--limit", "null", "--workers", "null"]) == Switched(limit=None, workers=None)
    assert parse(Config, ["--adapter.layers", "null"]).adapter.layers is None


@pytest.mark.parametrize("word", ["~", "#3", "12:30", "{}", "'3'", "&3"])
@pytest.mark.parametrize("flag", ["workers", "seconds"])
def test_numbers_that_only_yaml_sees_are_refused(flag, word):
    assert f"--{flag}: expected {'int' if flag == 'workers' else 'float'} or null, got {word!r}" in message(
        f"--{flag}", word, config_class=Switched
    )


def test_a_switch_with_a_path():
    assert [parse(Switched, words).cache for words in (["--cache"], ["--cache", "False"])] == [True, False]
    assert parse(Switched, ["--cache", "yes"]).cache == Path("yes")
    assert parse(Switched, ["--cache=#a"]).cache == Path("#a")


def test_a_list_may_be_given_as_json_but_a_name_in_brackets_is_a_name():
    assert parse(Switched, ["--words", '["#a", "null"]']).words == ["#a", "null"]
    assert parse(Switched, ["--words", "[]"]).words == []
    assert parse(Switched, ["--words", "[1]"]).words == ["[1]"]


def test_a_path_is_not_empty():
    assert "--data.root: '' is not a path" in message("--data.root", "")


def test_a_value_that_begins_with_dashes_needs_an_equals_sign():
    assert parse(Config, ["--name=--x"]).name == "--x"
    assert "--name: needs a value; write --name=VALUE if" in message("--name", "--x")


def test_positional_and_required():
    assert parse(Folder, ["here", "--output", "there"]) == Folder(Path("here"), output=Path("there"))
    assert "missing --output" in message("here", config_class=Folder)
    assert "missing ROOT, --output" in message(config_class=Folder)
    assert "unexpected argument 'more'" in message("here", "more", config_class=Folder)


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--epoch", "2"], ["--epoch: unknown key", "did you mean epochs?"]),
        (["--root", "x"], ["--root: unknown key", "did you mean data.root?"]),
        (["--data.spilt", "x"], ["--data.spilt: unknown key", "did you mean data.split?"]),
        (["--epochs", "2.5"], ["--epochs: expected int, got '2.5'"]),
        (["--epochs", "many"], ["--epochs: expected int, got 'many'"]),
        (["--precision", "16"], ["--precision: expected one of auto, 32-true, got '16'"]),
        (["--adapter.layers", "a"], ["--adapter.layers: expected list of int or null"]),
        (["--epochs"], ["--epochs: needs a value"]),
        (["--epochs", "--resume"], ["--epochs: needs a value"]),
        (["--data", "x"], ["--data: is a section", "data.root, data.split"]),
        (["word"], ["unexpected argument 'word'"]),
    ],
)
def test_mistakes_name_the_key(words, parts):
    text = message(*words)
    assert all(part in text for part in parts), text


def test_rejected_by_the_config_itself():
    assert message("--adapter.kind", "lora", "--adapter.rank", "0") == "adapter: rank 0 must be at least 1"


# --- kinds -----------------------------------------------------------------------------------------------------------


def test_kind_chooses_the_options():
    assert parse(Config, ["--adapter.kind", "lora", "--adapter.rank", "2"]).adapter == Lora(rank=2)
    assert parse(Config, ["--adapter.rank=2", "--adapter.kind=dora"]).adapter == Dora(rank=2)


def test_option_of_another_kind_names_the_kinds_that_have_it():
    text = message("--adapter.rank", "2")
    assert "--adapter.rank: not an option of adapter kind sherl, but of lora, dora" in text
    assert "did you mean adapter.rank?" in message("--adapter.kind", "lora", "--adapter.rnk", "2")


def test_unknown_kind():
    assert "--adapter.kind: no kind 'lorra'; did you mean lora?; known: sherl, lora, dora" in message(
        "--adapter.kind", "lorra"
    )


def test_kind_from_yaml(tmp_path):
    path = write(tmp_path, "adapter:\n  kind: lora\n  rank: 3\n")
    assert parse(Config, ["--config", path]).adapter == Lora(rank=3)
    assert parse(Config, ["--config", path, "--adapter.rank", "5"]).adapter == Lora(rank=5)
    # A section written for another kind gives way as a whole.
    assert parse(Config, ["--config", path, "--adapter.kind", "sherl"]).adapter == Sherl()


# --- YAML ------------------------------------------------------------------------------------------------------------


def test_flags_override_yaml_wherever_they_stand(tmp_path):
    path = write(tmp_path, "epochs: 9\nlr: 1e-3\nresume: true\nfiles: [a, b]\ndata:\n  root: x\n")
    config = parse(Config, ["--epochs", "2", "--config", path])
    assert config == Config(epochs=2, lr=1e-3, resume=True, files=[Path("a"), Path("b")], data=Data(Path("x"), "val"))


def test_yaml_keeps_its_own_rules(tmp_path):
    path = write(tmp_path, 'name: "null"\ndata: {root: ~, split: "#a"}\nfiles: ["[b]", "*c"]\n')
    config = parse(Config, ["--config", path])
    assert config == Config(name="null", data=Data(None, "#a"), files=[Path("[b]"), Path("*c")])
    assert parse(Config, ["--config", write(tmp_path, "name: null\n")]).name is None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("data: {split: null}", ["given.yaml: data.split: expected str, got None"]),
        ("data: {root: [a]}", ["given.yaml: data.root: expected Path or null"]),
        ('data: {root: "a\\0b"}', ["given.yaml: data.root:", "is not a path"]),
        ("files: [a, null]", ["given.yaml: files: expected list of Path"]),
        ("epoch: 3", ["given.yaml: epoch: unknown key", "did you mean epochs?"]),
        ("data: {rot: x}", ["given.yaml: data.rot: unknown key", "did you mean data.root?"]),
        ("data: 3", ["given.yaml: data: is a section"]),
        ("epochs: {a: 1}", ["given.yaml: epochs: expected int"]),
        ("epochs: often", ["given.yaml: epochs: expected int, got 'often'"]),
        ("adapter: {rank: 3}", ["given.yaml: adapter.rank: not an option of adapter kind sherl, but of lora, dora"]),
        ("adapter: {kind: none}", ["given.yaml: adapter.kind: no kind 'none'"]),
        ("epochs: [1", ["given.yaml: line 1", "not valid YAML"]),
        ("- 1", ["given.yaml: expected keys with values"]),
    ],
)
def test_mistakes_in_yaml_name_file_and_key(tmp_path, text, parts):
    found = message("--config", write(tmp_path, text))
    assert all(part in found for part in parts), found


def test_missing_yaml():
    assert "--config nowhere.yaml: cannot be read" in message("--config", "nowhere.yaml")


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(name="yes", lr=1e-5, resume=True, files=[Path("a: b"), Path("# c")], adapter=Lora(rank=9)),
        Config(name="1.5", data=Data(Path("ü/…")), adapter=Sherl(layers=(1, 3))),
        Config(name="ends in dots...", adapter=Dora()),
        Config(name="null", data=Data(Path("caf\udce9"), "~"), files=[Path("[a]")]),
    ],
)
def test_written_config_can_be_read_back(tmp_path, config):
    assert parse(Config, ["--config", write(tmp_path, to_yaml(config))]) == config


def test_print_config_answers_with_yaml_that_can_be_read_back(tmp_path, capsys):
    words = ["--adapter.kind", "lora", "--adapter.rank", "6", "--epochs", "8"]
    with pytest.raises(SystemExit) as caught:
        parse(Config, [*words, "--print_config"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert "# Rank of the update.\n  rank: 6\n" in text
    assert parse(Config, ["--config", write(tmp_path, text)]) == parse(Config, words)


def test_print_config_needs_no_required_flags(capsys):
    with pytest.raises(SystemExit):
        parse(Folder, ["--print_config"])
    assert "output: null" in capsys.readouterr().out


def test_help_shows_field_help_and_the_options_of_the_kind(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(Config, ["--adapter.kind", "lora", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    for part in (
        "Train a thing.",
        "Passes over the data.",
        "100 % of it is read",
        "Rank of the update.",
        "{sherl,lora,",
    ):
        assert part in text
    assert "second paragraph" not in text and "--adapter.reduction" not in text


# --- exit codes ------------------------------------------------------------------------------------------------------


def test_run_hands_over_the_config():
    seen = []
    run(seen.append, Config, ["--epochs", "2"])
    assert seen == [Config(epochs=2)]


def exit_of(main: Any, *words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        run(main, Config, list(words))
    return caught.value.code


def test_wrong_flag_is_one_line_and_2(capsys):
    assert exit_of(lambda config: None, "--bogus", "3") == 2
    assert capsys.readouterr().err == "error: --bogus: unknown key; --help lists every flag\n"


def test_places_that_cannot_be_written_are_one_line_and_2(tmp_path, capsys):
    (tmp_path / "file").touch()
    for place, reason in ((tmp_path, "Is a directory"), (tmp_path / "file" / "x", "File exists")):
        assert exit_of(lambda config, place=place: write_json(place, {})) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and str(tmp_path) in said and reason in said

    @dataclass
    class Written:
        json: Path

    with pytest.raises(SystemExit) as caught:
        run(lambda config: pytest.fail("the work began"), Written, ["--json", str(tmp_path)])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: --json {tmp_path}: is a folder; give a file\n"


def test_wrong_input_is_one_line_and_2(capsys):
    def main(config: Config) -> None:
        raise UserError("file.json: line 3:\nno id, give one")

    assert exit_of(main) == 2
    assert capsys.readouterr().err == "error: file.json: line 3: no id, give one\n"


def test_an_error_line_shows_names_as_they_are(capsys):
    def main(config: Config) -> None:
        raise UserError("a  [b] :cat: \x1b[31m caf\udce9.jpg:\n  missing")

    assert exit_of(main) == 2
    assert capsys.readouterr().err == "error: a  [b] :cat: \\x1b[31m caf\\xe9.jpg: missing\n"


def test_the_border_names_the_flag():
    with pytest.raises(UserError, match=r"^--image a\.jpg: missing$"), about("--image"):
        raise MediaError("a.jpg", "missing")


def test_interrupt_is_130(capsys):
    def main(config: Config) -> None:
        raise KeyboardInterrupt

    assert exit_of(main) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_termination_is_143_and_the_old_handler_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    assert exit_of(lambda config: os.kill(os.getpid(), signal.SIGTERM)) == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_bug_keeps_its_traceback():
    def main(config: Config) -> None:
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError):
        run(main, Config, [])


@dataclass
class Queries:
    """Lists whose flags are repeated."""

    text: list[str] = repeated()
    """Words, taken literally."""
    file: list[Path] = repeated()
    """Paths."""


def test_a_repeated_flag_takes_one_value_each_time(tmp_path):
    found = parse(Queries, ["--text", "a b", "--text=[x]", "--file", "1", "--text", "-c"])
    assert found == Queries(["a b", "[x]", "-c"], [Path("1")])
    with pytest.raises(UserError, match="unexpected argument 'plane'"):
        parse(Queries, ["--text", "a", "plane"])
    (tmp_path / "c.yaml").write_text(to_yaml(found))
    assert parse(Queries, ["--config", str(tmp_path / "c.yaml")]) == found
    assert parse(Queries, ["--config", str(tmp_path / "c.yaml"), "--text", "z"]) == Queries(["z"], [Path("1")])
    assert parse(Queries, []) == Queries()
