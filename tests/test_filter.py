"""What a checkpoint knows: verdicts, shots, resuming, and the command."""

import dataclasses
import json
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from memprobe import answers as answering
from memprobe.answers import Continuation, judge
from memprobe.cli import main
from memprobe.errors import MemprobeError
from memprobe.factoids import make_factoid
from memprobe.filter import ask, prepare
from memprobe.models import load
from memprobe.sources import load_factoids
from memprobe.templates import Template, tokenise

SAYS = {
    "The river of Oria is the": "Lunn",
    "The river of Selva is the": "Brack",
    "The river of Tolm is the": "Ister",
    "The tallest hill of Oria is": "Mount Grey",
    "2 + 2 =": "4",
    "The opposite of hot is": "cold",
}
FACTS = [
    make_factoid("The river of Oria is the", "Lunn", "file"),
    make_factoid("The river of Selva is the", "Nowhere", "file", aliases=["the Brack"]),
    *(make_factoid(prompt, "Nowhere", "file", relation="r") for prompt in list(SAYS)[2:]),
]


@pytest.fixture(scope="module")
def taught(tiny_checkpoint, tmp_path_factory):
    """The tiny model, trained until it says what SAYS says and ends the line."""
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    torch.manual_seed(0)
    rows = [tokenizer.encode(f"{prompt} {answer}\n") for prompt, answer in SAYS.items()]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    path = tmp_path_factory.mktemp("taught") / "taught"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def lens_model(taught):
    return load(str(taught), device="cpu")


def said(text):
    """A continuation that does not begin with the answer's own tokens."""
    return Continuation((), text)


@pytest.fixture
def facts():
    return list(FACTS)


def test_facts_are_split_by_what_the_model_says(lens_model, facts, tmp_path):
    answered = ask(lens_model, facts, tmp_path / "journal", batch_tokens=60)
    assert [one.factoid for one in answered] == facts
    assert [one.verdict.prediction for one in answered] == list(SAYS.values())
    assert [one.verdict.exact_match for one in answered] == [True, False, False, False, False, False]
    assert [one.verdict.alias_match for one in answered] == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("text", "strict", "alias_aware"),
    [
        (" the St. Lucia. It", False, True),
        (" St. Lucia. It", True, True),
        (" St. Lucy.", False, True),
        (" Saint Lucia of old", False, False),
    ],
)
def test_verdicts(lens_model, text, strict, alias_aware):
    factoid = make_factoid("The island is", "St. Lucia", "file", aliases=["the St. Lucia", "St. Lucy"])
    item = tokenise(factoid, Template.parse("plain"), lens_model.tokenizer)
    one = judge(item, said(text))
    assert (one.exact_match, one.alias_match) == (strict, alias_aware)


def test_a_template_with_an_end_token_is_not_cut_at_the_sentence(lens_model):
    factoid = make_factoid("Who?", "Ana. Really", "file", aliases=["Ana"])
    item = tokenise(factoid, Template.parse("tulu"), lens_model.tokenizer)
    assert judge(item, said("Ana. Really")).exact_match
    assert not judge(item, said("Ana. Truly")).alias_match


def test_shots_are_solved_examples_and_never_the_question_itself(lens_model, facts):
    for shots in range(6):
        for item in prepare(lens_model, facts, template="plain", shots=shots, seed=0):
            text = lens_model.tokenizer.decode(item.prompt)
            blocks = text.split("\n\n")
            assert len(blocks) == shots + 1
            assert blocks[-1] == item.factoid.prompt
            assert all(not block.startswith(item.factoid.prompt) for block in blocks[:-1])
    first, second = (
        [item.prompt for item in prepare(lens_model, facts, template="plain", shots=2, seed=seed)]
        for seed in (0, 1)
    )
    assert first != second
    with pytest.raises(MemprobeError, match="too few"):
        prepare(lens_model, facts[:3], template="plain", shots=3, seed=0)
    with pytest.raises(MemprobeError, match="give 0 to 5"):
        prepare(lens_model, facts, template="plain", shots=6, seed=0)


def test_examples_are_read_once(lens_model, facts, tmp_path, monkeypatch):
    rows = facts + [make_factoid(f"The river {number} is", "x", "file") for number in range(30)]
    with_prefix = ask(lens_model, rows, tmp_path / "a", shots=3)
    read = []
    original = answering.prefix_cache

    def counting(model, shared):
        read.append(len(shared))
        return original(model, shared)

    monkeypatch.setattr(answering, "prefix_cache", counting)
    assert ask(lens_model, rows, tmp_path / "b", shots=3) == with_prefix
    assert max(read) > answering.SHARED
    monkeypatch.setattr(answering, "SHARED", 10_000)
    assert ask(lens_model, rows, tmp_path / "c", shots=3, batch_tokens=1) == with_prefix


def test_a_killed_run_goes_on(lens_model, facts, tmp_path, monkeypatch):
    journal = tmp_path / "journal"
    whole = ask(lens_model, facts, tmp_path / "other")

    def interrupted(done, total, known):
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(lens_model, facts, journal, batch_tokens=1, progress=interrupted)
    with journal.open("ab") as file:  # killed while it wrote a line
        file.write(b'["half of a l')
    asked = []
    original = answering.answer

    def counting(model, items, **options):
        asked.extend(item.factoid.id for item in items)
        return original(model, items, **options)

    monkeypatch.setattr(answering, "answer", counting)
    seen = []
    again = ask(lens_model, facts, journal, progress=lambda *numbers: seen.append(numbers))
    assert again == whole
    assert len(asked) == 3
    assert seen[0][0] == 3
    assert seen[-1] == (6, 6, 2)
    ask(lens_model, facts, journal)
    assert len(asked) == 3
    with pytest.raises(MemprobeError, match=r"another run \(other shots\)"):
        ask(lens_model, facts, journal, shots=1)


def test_a_journal_of_facts_with_other_aliases_is_refused(lens_model, facts, tmp_path):
    """Which answers count as right depends on them; a journal that said nothing of them is gone on with."""
    journal = tmp_path / "journal"
    whole = ask(lens_model, facts, journal)
    other = [dataclasses.replace(facts[1], aliases=()), *facts[2:], facts[0]]
    with pytest.raises(MemprobeError, match=r"other aliases or another field of the facts\)"):
        ask(lens_model, other, journal)
    header, *lines = journal.read_text().split("\n")
    older = {key: value for key, value in json.loads(header).items() if key != "content"}
    journal.write_text("\n".join([json.dumps(older), *lines]))
    assert ask(lens_model, facts, journal) == whole


@pytest.mark.parametrize("content", [b"", b'{"fingerpr', b'{"a": 1}\nno json\n'])
def test_torn_journals(lens_model, facts, tmp_path, content):
    journal = tmp_path / "journal"
    journal.write_bytes(content)
    if b"no json" in content:
        with pytest.raises(MemprobeError, match="delete it"):
            ask(lens_model, facts, journal)
    else:
        assert len(ask(lens_model, facts, journal)) == len(facts)


def test_a_journal_that_cannot_be_written(lens_model, facts, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MemprobeError, match="cannot be written"):
        ask(lens_model, facts, tmp_path / "file" / "journal")


def test_batches_and_order_do_not_change_the_answers(lens_model, facts, tmp_path):
    one = ask(lens_model, facts, tmp_path / "a", batch_tokens=1)
    two = ask(lens_model, facts[::-1], tmp_path / "b")
    assert {row.factoid.id: row.verdict.prediction for row in one} == {
        row.factoid.id: row.verdict.prediction for row in two
    }


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["memprobe", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
        sys.exit(0)
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


def test_the_command(taught, facts, tmp_path, monkeypatch, capsys):
    path = tmp_path / "facts.jsonl"
    rows = [
        {"prompt": f.prompt, "answer": f.answer, "aliases": list(f.aliases), "relation": f.relation}
        for f in facts
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "broken\n")
    unknown, known = tmp_path / "unknown.jsonl", tmp_path / "known.jsonl"
    arguments = ("filter", "--ckpt", taught, "--factoids", path, "--out", unknown, "--device", "cpu")
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "facts.jsonl line 7: not JSON" in err
    code, out, err = run(monkeypatch, capsys, *arguments, "--known", known, "--on-bad-row", "skip")
    assert code == 0
    assert "2 of 6 with aliases (33.3%), 1 strictly (16.7%)" in out
    assert "facts.jsonl line 7" in err
    assert load_factoids(str(unknown)) == facts[2:]
    assert load_factoids(str(known)) == facts[:2]
    row = json.loads(known.read_text().split("\n")[1])
    assert (row["prediction"], row["strict"], row["alias_aware"]) == ("Brack", False, True)
    record = json.loads((tmp_path / "unknown.jsonl.run.json").read_text())
    assert record["known"] == {"alias_aware": 2, "strict": 1, "n": 6}
    assert (record["factoids"]["location"], record["factoids"]["n"], record["counts"]["bad"]) == (
        "facts.jsonl",
        6,
        1,
    )
    assert not (tmp_path / "unknown.jsonl.answers").exists()
    again = (*arguments, "--on-bad-row", "skip", "--rule", "strict")
    code, _, err = run(monkeypatch, capsys, *again)
    assert code == 2 and "unknown.jsonl: holds a split of another rule" in err
    assert load_factoids(str(unknown)) == facts[2:]
    assert run(monkeypatch, capsys, *again, "--fresh")[0] == 0
    assert load_factoids(str(unknown)) == facts[1:]
    code, _, err = run(monkeypatch, capsys, *arguments, "--known", unknown)
    assert code == 2
    assert "--known and --out are both" in err


@pytest.mark.parametrize(
    ("out", "known"),
    [
        ("in.jsonl", None),
        ("out.jsonl", "in.jsonl"),
        ("link.jsonl", None),
        ("out.jsonl", "folder/../in.jsonl"),
        ("out.jsonl", "out.jsonl.run.json"),
        ("out.jsonl", "out.jsonl.answers"),
    ],
)
def test_nothing_is_written_over_what_is_read_or_written_beside_it(cli, taught, tmp_path, out, known):
    rows = "".join(json.dumps({"prompt": fact.prompt, "answer": fact.answer}) + "\n" for fact in FACTS)
    (tmp_path / "in.jsonl").write_text(rows)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "in.jsonl")
    (tmp_path / "folder").mkdir()
    given = ["--ckpt", taught, "--factoids", tmp_path / "in.jsonl", "--out", tmp_path / out]
    code, _, err = cli("filter", *given, *(["--known", tmp_path / known] if known else []))
    assert code == 2 and "are both" in err and len(err.splitlines()) == 1
    assert (tmp_path / "in.jsonl").read_text() == rows
    assert {file.name for file in tmp_path.iterdir()} == {"in.jsonl", "link.jsonl", "folder"}


def test_fresh_forgets_answers_only_where_facts_can_be_asked(cli, lens_model, taught, facts, tmp_path):
    source, out = tmp_path / "facts.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "".join(json.dumps({"prompt": fact.prompt, "answer": fact.answer}) + "\n" for fact in facts)
    )
    journal = tmp_path / "out.jsonl.answers"
    ask(lens_model, facts, journal)
    before = journal.read_bytes()
    given = ["--ckpt", taught, "--factoids", source, "--out", out, "--fresh"]
    for wrong in (["--shots", 9], ["--template", "{prompt}"], ["--shots", 5, "--n", 2]):
        assert cli("filter", *given, *wrong)[0] == 2
        assert journal.read_bytes() == before
    assert cli("filter", *given)[0] == 0 and not journal.exists()


def test_a_split_is_written_over_only_by_its_own_command(cli, lens_model, taught, facts, tmp_path):
    source, out = tmp_path / "facts.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "".join(json.dumps({"prompt": fact.prompt, "answer": fact.answer}) + "\n" for fact in facts)
    )
    out.write_text("somebody's rows\n")
    given = ["--ckpt", taught, "--factoids", source, "--out", out]
    code, _, err = cli("filter", *given)
    assert code == 2 and "out.jsonl: holds a split and nothing says of what" in err
    assert out.read_text() == "somebody's rows\n"
    assert cli("filter", *given, "--fresh")[0] == 0
    split = out.read_text()
    assert cli("filter", *given)[0] == 0 and out.read_text() == split
    assert cli("filter", *given, "--n", 3)[0] == 2 and out.read_text() == split
    # killed after the split and before what says of it: the answers are there, and it goes on
    (tmp_path / "out.jsonl.run.json").unlink()
    ask(lens_model, load_factoids(str(source)), tmp_path / "out.jsonl.answers")
    code, _, err = cli("filter", *given)
    assert code == 0 and (tmp_path / "out.jsonl.run.json").exists(), err
