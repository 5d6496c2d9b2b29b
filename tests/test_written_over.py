"""What is written never takes the place of something else that lay there."""

import json


def test_a_page_is_written_over_a_page_alone(tiny_checkpoint, tmp_path, cli):
    own, page = tmp_path / "facts.csv", tmp_path / "page.html"
    own.write_text("prompt,answer\nThe river of Oria is the,Lunn\n")
    asked = ["--ckpt", tiny_checkpoint, "--prompt", "The river of Oria is the"]
    assert cli("lens", *asked, "--out", page)[0] == 0 and cli("lens", *asked, "--out", page)[0] == 0
    other = tmp_path / "notes.html"
    other.write_text("my notes")
    (tmp_path / "folder.html").mkdir()
    cases = {
        own: "a page is written; give a name that ends in .html",
        other: "holds something else than a page; give another name",
        tmp_path / "folder.html": "a directory; name the file",
        own / "page.html": "facts.csv is a file, not a folder",
    }
    for command in (["lens", *asked], ["dashboard", tmp_path]):
        for out, said in cases.items():
            code, printed, err = cli(*command, "--out", out)
            assert code == 2 and printed == "" and f"--out {out}: " in err and said in err
    assert own.read_text().startswith("prompt,answer") and other.read_text() == "my notes"


def test_rows_are_written_over_other_rows_only_where_that_is_asked_for(tmp_path, cli):
    out = tmp_path / "own.jsonl"
    assert cli("sources", "known", "--n", "3", "--out", out)[0] == 0
    first = out.read_text()
    assert (
        cli("sources", "known", "--n", "3", "--out", out)[0] == 0 and out.read_text() == first
    )  # the same rows
    code, _, err = cli("sources", "known", "--n", "2", "--out", out)
    assert code == 2 and f"--out {out}: holds other rows" in err and out.read_text() == first
    assert cli("sources", "known", "--n", "2", "--fresh", "--out", out)[0] == 0
    assert len([json.loads(line) for line in out.read_text().splitlines()]) == 2
    code, _, err = cli("sources", "known", "--fresh")
    assert code == 2 and "--fresh" in err
