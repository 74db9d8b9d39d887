"""Files and folders of every accepted type hold the same rows."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest
from tiny import tiny_tokenizer

from secateur.data.documents import check_spec, read_data, read_documents
from secateur.data.tokens import evaluation_tokens, left_out_of
from secateur.system.errors import InputError

ROWS = [{"text": "One"}, {"text": 'Two, with "quotes"\nand lines'}, {"text": "Drei, Größe"}]
TEXTS = [row["text"] for row in ROWS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zstandard(content):
    import pyarrow

    return bytes(pyarrow.Codec("zstd").compress(content))


def csv_of(delimiter):
    quoted = ['"' + text.replace('"', '""') + '"' for text in TEXTS]
    return "".join(
        f"{i}{delimiter}{text}\r\n" for i, text in zip(["id", "0", "1", "2"], ["text", *quoted], strict=True)
    )


def table(path):
    import pyarrow

    return pyarrow.Table.from_pylist(ROWS)


CONTENTS = {
    "a.jsonl": LINES,
    "bom.jsonl": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n"),
    "boms.jsonl": b"".join(b"\xef\xbb\xbf" + line for line in LINES.splitlines(keepends=True)),
    "lines.json": LINES,
    "list.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=2).encode(),
    "pretty.jsonl": json.dumps(ROWS, indent=2).encode(),
    "one_after_another.jsonl": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    "wrapped.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "pretty_wrapped.json": json.dumps({"version": 1, "data": ROWS}, indent=1).encode(),
    "splits.json": json.dumps({"test": [{"text": "no"}], "train": ROWS}).encode(),
    "columns.json": json.dumps({"text": TEXTS, "id": [1, 2, 3]}).encode(),
    "a.jsonl.gz": gzip.compress(LINES),
    "a.json.bz2": bz2.compress(json.dumps(ROWS).encode()),
    "a.jsonl.xz": lzma.compress(LINES),
    "A.JSONL.ZST": zstandard(LINES),
    "a.csv": csv_of(",").encode(),
    "bom.csv": csv_of(",").encode("utf-8-sig"),
    "semicolons.csv": csv_of(";").encode(),
    "a.tsv": csv_of("\t").encode(),
    "a.csv.gz": gzip.compress(csv_of(",").encode()),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_rows_of_every_type(name, tmp_path):
    (tmp_path / name).write_bytes(CONTENTS[name])
    check_spec(str(tmp_path / name))
    assert [document.text for document in read_documents(str(tmp_path / name))] == TEXTS


def test_binary_tables(tmp_path):
    import pyarrow
    from pyarrow import parquet

    turns = [{"role": "user", "content": "Hi", "weight": None}, {"role": "assistant", "content": "Yo", "weight": 0}]
    found = pyarrow.Table.from_pylist([{"text": "One", "messages": None}, {"text": None, "messages": turns}])
    parquet.write_table(found, tmp_path / "a.parquet")
    with (
        pyarrow.OSFile(str(tmp_path / "stream.arrow"), "wb") as file,
        pyarrow.ipc.new_stream(file, found.schema) as out,
    ):
        out.write_table(found)
    with pyarrow.OSFile(str(tmp_path / "file.arrow"), "wb") as file, pyarrow.ipc.new_file(file, found.schema) as out:
        out.write_table(found)
    for name in ("a.parquet", "stream.arrow", "file.arrow"):
        first, second = read_documents(str(tmp_path / name))
        assert (first.text, first.origin) == ("One", f"{tmp_path / name}, row 1")
        assert (second.messages, second.untrained) == ((("user", "Hi"), ("assistant", "Yo")), {1})
    for name in ("bad.parquet", "bad.arrow"):
        (tmp_path / name).write_bytes(b"no such thing")
        with pytest.raises(InputError, match=rf"{name} cannot be read as \.{name[4:]} \(.*\): write it again"):
            read_documents(str(tmp_path / name))


def test_a_packed_text_is_one_document(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfOne\n{"))
    assert [document.text for document in read_documents(str(tmp_path / "a.txt.gz"))] == ["One\n{"]


def test_a_csv_has_null_for_an_empty_cell_and_json_for_turns(tmp_path):
    turns = json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "5"}]).replace('"', '""')
    (tmp_path / "a.csv").write_text(f'text,messages\nx,\n,"{turns}"\n')
    first, second = read_documents(str(tmp_path / "a.csv"))
    assert (first.text, second.messages) == ("x", (("user", "Hi"), ("assistant", "5")))
    (tmp_path / "b.csv").write_text("instruction,input,output\nAdd,1 2,3\nAdd,,NA\n")
    assert [d.messages[1][1] for d in read_documents(str(tmp_path / "b.csv"))] == ["3", "NA"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "Text".encode("utf-16"), r"a\.txt is UTF-16 \(its first bytes say so\): convert it to UTF-8"),
        ("a.jsonl.gz", b"text", r"a\.jsonl\.gz cannot be read \(Not a gzipped file.*\): check the file"),
        ("a.jsonl.zst", b"text", r"a\.jsonl\.zst cannot be read \(.*\): check the file"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-12], r"cannot be read \(Compressed file ended.*"),
        ("a.csv", b"text,id\na,1,2\n", r"a\.csv:2: more cells than the header has"),
        ("a.csv", b"id,name\n1,a\n", r"a\.csv:2: expected `text`.*; found the keys 'id', 'name'"),
        ("a.json", b'{\n "text": "a",\n "b" 3\n}', r"a\.json:3 is not valid JSON \(Expecting ':'"),
        ("a.jsonl", b'{"text": \n{"text": "b"}\n', r"a\.jsonl:1 is not valid JSON"),
        ("a.json", b'{"dev": [{"text": "a"}], "test": [{"text": "b"}]}', r"several lists of rows \('dev', 'test'\)"),
        ("a.jsonl", b'{"text": null}\n{"text": null}\n', r"has 2 rows and no text in them \(2 with null in place"),
    ],
)
def test_bad_files(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_documents(str(tmp_path / name))


def test_a_folder_names_what_it_does_not_read(tmp_path):
    for name in ("a.jsonl", "d.jsonl.gz", "c.csv"):
        (tmp_path / name).write_bytes(CONTENTS[{"c.csv": "a.csv", "d.jsonl.gz": "a.jsonl.gz"}.get(name, name)])
    (tmp_path / "notes.pdf").touch()
    (tmp_path / ".hidden").touch()
    (tmp_path / "sub").mkdir()
    documents, tally = read_data(str(tmp_path))
    assert [document.text for document in documents] == TEXTS * 3
    assert tally.record()["files_not_read"] == {"notes.pdf": 1, "sub/": 1}
    assert "data: not read, no text or rows by their names: notes.pdf, sub/." in tally.notes()


def test_what_datasets_saved_to_disk(tmp_path):
    from datasets import Dataset, DatasetDict

    train, test = Dataset.from_list(ROWS), Dataset.from_list([{"text": "test"}])
    train.save_to_disk(tmp_path / "one")
    DatasetDict(train=train, test=test).save_to_disk(tmp_path / "both")
    for name in ("one", "both"):
        check_spec(str(tmp_path / name))
        assert [document.text for document in read_documents(str(tmp_path / name))] == TEXTS
    assert [d.text for d in read_documents(str(tmp_path / "both"), evaluation=True)] == ["test"]
    DatasetDict(a=train, b=test).save_to_disk(tmp_path / "others")
    with pytest.raises(InputError, match=r"has the splits 'a', 'b' and no 'train': give the folder or the file"):
        read_documents(str(tmp_path / "others"))


def test_a_copy_of_a_hub_repository(tmp_path, monkeypatch):
    from datasets import Dataset

    (tmp_path / "plain" / "data").mkdir(parents=True)
    (tmp_path / "card").mkdir()
    for folder in ("plain/data/train-00000-of-00001", "card/first"):
        Dataset.from_list(ROWS).to_parquet(tmp_path / f"{folder}.parquet")
    for folder in ("plain/data/test-00000-of-00001", "card/second"):
        Dataset.from_list([{"text": "test"}]).to_parquet(tmp_path / f"{folder}.parquet")
    (tmp_path / "card" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: first.parquet\n"
        "  - split: test\n    path: second.parquet\n---\n# Card\n"
    )
    (tmp_path / "card" / "third.csv").write_text("text\nno\n")
    assert read_data(str(tmp_path / "card"))[1].record() == {"files_in_no_split": {"third.csv": 1}}
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "names" / "train.jsonl").write_bytes(LINES)
    (tmp_path / "names" / "test.jsonl").write_text('{"text": "test"}')
    for name in ("plain", "card", "names"):
        check_spec(str(tmp_path / name))
        assert [document.text for document in read_documents(str(tmp_path / name))] == TEXTS
        assert [d.text for d in read_documents(str(tmp_path / name), evaluation=True)] == ["test"]


def test_a_split_that_could_be_another_than_meant_is_said(tmp_path):
    def split_read(name, **more):
        documents, tally = read_data(str(tmp_path / name), **more)
        return {document.text for document in documents}, list(tally.record().get("splits", {}))

    def write(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(json.dumps({"text": name}))
        return tmp_path / Path(names[0]).parts[0]

    only = write("only/data/train.jsonl")
    said = f"`train` of {only}, which has no `test`"
    assert split_read("only", evaluation=True) == ({"only/data/train.jsonl"}, [said])
    assert split_read("only") == ({"only/data/train.jsonl"}, [])
    info = evaluation_tokens(str(only), tiny_tokenizer())[1]
    assert left_out_of(info) == [f"evaluation data {only}: the split that is read: {said}."]
    # beside each other and named after splits, without a card
    both = write("both/train.jsonl", "both/train-2.jsonl", "both/dev.jsonl")
    texts = {"both/train.jsonl", "both/train-2.jsonl"}
    assert split_read("both") == (texts, [f"`train` of {both}, which also has `validation`"])
    assert split_read("both", evaluation=True) == ({"both/dev.jsonl"}, [f"`validation` of {both}, which has no `test`"])
    for other in ("other/train.jsonl", "other/test.jsonl", "other/more.jsonl"):
        write(other)
    assert split_read("other")[1] == []
    assert len(split_read("other")[0]) == 3
    # of two configurations
    two = write("two/main/train/0.jsonl", "two/more/train/0.jsonl")
    assert split_read("two")[1] == [f"`train` of {two}, from main/train, more/train together"]
    rows = [{"text": "a"}]
    for name, lists in {
        "train.json": {"train": rows},
        "dev.json": {"train": [{"text": "b"}], "validation": rows},
    }.items():
        (tmp_path / name).write_text(json.dumps(lists))
    assert split_read("train.json", evaluation=True)[1] == [
        f"`train` of {tmp_path / 'train.json'}, which has no `test`"
    ]
    assert split_read("dev.json", evaluation=True)[0] == {"a"}
