"""A system prompt before every row: as if the rows had brought it."""

import json

import pytest
from tiny import tiny_tokenizer

from secateur.data.forms.system import PROMPTS
from secateur.data.tokens import training_blocks
from secateur.system.errors import InputError

ROWS = {
    "conversation": {"messages": [
        {"role": "user", "content": "two and two"}, {"role": "assistant", "content": "four"},
    ]},
    "an own prompt": {"messages": [
        {"role": "system", "content": "be short"}, {"role": "user", "content": "two and two"},
        {"role": "assistant", "content": "four"},
    ]},
    "an unlabelled turn": {"messages": [
        {"role": "user", "content": "two and two"}, {"role": "assistant", "content": "five", "weight": 0},
        {"role": "user", "content": "no"}, {"role": "assistant", "content": "four"},
    ]},
    "completion": {"prompt": "two and two is ", "completion": "four"},
}  # fmt: skip


def blocks(folder, rows, **more):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"seq_len": 8, "response_only": True} | more
    found = training_blocks([str(path)], tiny_tokenizer(chat_template=True), **given)
    return found.input_ids, found.labels


@pytest.mark.parametrize("kind", list(ROWS))
@pytest.mark.parametrize("prompt", ["you are being pruned", "collaborative"])
def test_it_is_what_rows_with_that_prompt_make(kind, prompt, tmp_path) -> None:
    row, text = ROWS[kind], PROMPTS.get(prompt, prompt)
    if kind == "completion":
        same = row | {"prompt": f"{text}\n\n{row['prompt']}"}
    else:
        own = [turn["content"] for turn in row["messages"] if turn["role"] == "system"]
        system = {"role": "system", "content": "\n\n".join([text, *own])}
        same = {"messages": [system, *(turn for turn in row["messages"] if turn["role"] != "system")]}
    ids, labels = blocks(tmp_path, [row] * 4, system=prompt)
    assert (ids, labels) == blocks(tmp_path, [same] * 4)
    longer, plain = (blocks(tmp_path, [row] * 4, system=given, response_only=False)[0] for given in (prompt, None))
    assert len(longer) > len(plain)
    assert any(label != -100 for block in labels for label in block)


def test_plain_text_has_no_place_for_it(tmp_path) -> None:
    with pytest.raises(InputError, match=r"goes before conversations and prompts, and .*rows.jsonl.* is plain text"):
        blocks(tmp_path, [{"text": "words and more words"}] * 4, system="x", response_only=False)
