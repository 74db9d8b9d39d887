"""Labels of conversations: which characters of a chat template's text are the reply and what ends it."""

from pathlib import Path

import pytest
import trl
from tiny import tiny_tokenizer
from tokenizers import AddedToken
from transformers.utils.chat_template_utils import render_jinja_template

from secateur.data.endings import ending_ids
from secateur.data.forms.document import Document
from secateur.data.forms.tally import Tally
from secateur.data.forms.turns import Turn
from secateur.data.labels import IGNORED, Labeller

TWO = (("user", "Hi there"), ("assistant", "Hello you."), ("user", "And now"), ("assistant", "Fine, two."))
EACH = "{% for m in messages %}"
CHATML = EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
THINKING = (  # as Qwen3's: thoughts before the last question are left out, and the last reply always has one
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% set said = m.content or '' %}{% set thought = m.reasoning_content or '' %}{% if '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ said }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}({{ call.function.arguments | tojson }})</call>"
    "{% endfor %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_of(template, *added, special=False, eos="<|end|>"):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in added])
    tokenizer.eos_token = eos
    tokenizer.chat_template = template
    return tokenizer


def chat(*messages, keys=(), **options):
    return Document("chat", "x", messages=messages, turn_keys=keys, **options)


def labelled(document, tokenizer, *, response_only=True, tally=None):
    """The labelled runs of tokens as text."""
    ids, labels = Labeller(tokenizer, response_only, tally or Tally()).tokenise(document)
    runs, last = [], IGNORED
    for token, label in zip(ids, labels, strict=True):
        assert label in (token, IGNORED)
        if label != IGNORED:
            runs = [*runs[:-1], [*runs[-1], token]] if last != IGNORED else [*runs, [token]]
        last = label
    return [tokenizer.decode(run) for run in runs]


ENDERS = {
    "Gemma": (
        "{{ bos_token }}" + EACH + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
    ),
    "Phi-3": (
        EACH + "<|{{ m.role }}|>\n{{ m.content }}<|fin|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        ("<|user|>", "<|assistant|>", "<|fin|>"),
        "<|fin|>",
    ),
    "Llama 3": (
        EACH + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
    ),
    "Mistral, </s> where eos is another": (
        EACH + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>{% endif %}"
        "{% endfor %}",
        ("[INST]", "[/INST]", "</s>"),
        "</s>",
    ),
    "Llama 2, a blank before the ender": (
        EACH + "{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} </s>{% endif %}"
        "{% endfor %}",
        ("<s>", "</s>"),
        " </s>",
    ),
    "Zephyr": (
        EACH + "<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ("<|user|>", "<|assistant|>"),
        "<|end|>",
    ),
    "DeepSeek": (
        EACH + "{% if m.role == 'user' %}User: {{ m.content }}\n\n{% else %}Assistant: {{ m.content }}<fin>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
        ("<fin>",),
        "<fin>",
    ),
    "ChatML": (CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "ChatML in plain tokens": (CHATML, (), "<|im_end|>"),
    "several plain tokens": (EACH + "## {{ m.role }}\n{{ m.content }}\n-- over --\n\n{% endfor %}", (), "\n-- over --"),
    "Phi-3 in plain tokens": (
        EACH + "<|{{ m.role }}|>\n{{ m.content }}<|fin|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|last|>{% endif %}",
        (),
        "<|fin|>",
    ),
}


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", ENDERS)
def test_what_ends_a_reply_is_labelled_and_the_next_header_is_not(name, special):
    template, added, ender = ENDERS[name]
    tokenizer = tokenizer_of(template, *added, special=special)
    assert labelled(chat(*TWO), tokenizer) == [f"Hello you.{ender}", f"Fine, two.{ender}"]
    assert labelled(chat(*TWO[:3]), tokenizer) == [f"Hello you.{ender}"]


def test_an_ender_that_is_another_at_the_end():
    template = (
        EACH + "<|start|>{{ m.role }}<|message|>{{ m.content }}"
        "{% if loop.last and m.role == 'assistant' and not add_generation_prompt %}<|return|>{% else %}<|over|>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    tokenizer = tokenizer_of(template, "<|message|>", "<|return|>", "<|over|>")
    assert labelled(chat(*TWO), tokenizer) == ["Hello you.<|over|>", "Fine, two.<|return|>"]


def test_a_template_without_an_ender_ends_with_eos_as_a_text_does():
    tokenizer = tokenizer_of(EACH + "{{ m.role }}: {{ m.content }}\n{% endfor %}")
    tally = Tally()
    assert labelled(chat(*TWO), tokenizer, tally=tally) == ["Hello you.", "Fine, two.", "<|end|>"]
    assert "writes nothing at the end of a reply: <|end|> is put after the last one (1" in tally.notes()[0]
    assert labelled(chat(*TWO[:3]), tokenizer) == ["Hello you."]
    # what begins the next turn ends this one, where it is a special token and nothing else does (GLM's <|user|>)
    tokenizer = tokenizer_of(
        EACH + "<|{{ m.role }}|>{{ m.content }}{% endfor %}", "<|user|>", "<|assistant|>", special=True
    )
    assert labelled(chat(*TWO), tokenizer) == ["Hello you.<|user|>", "Fine, two.<|end|>"]


def test_without_an_end_of_sequence_token_that_nothing_ends_a_text_is_said():
    tokenizer = tokenizer_of(EACH + "{{ m.role }}: {{ m.content }}\n{% endfor %}")
    tokenizer.eos_token = None
    tally = Tally()
    assert labelled(chat(*TWO), tokenizer, tally=tally) == ["Hello you.", "Fine, two."]
    for i in range(2):
        assert labelled(Document("text", f"x:{i}", "ab"), tokenizer, response_only=False, tally=tally) == ["ab"]
    no_eos = "the tokenizer has no eos_token"
    assert tally.record() == {"endings": {no_eos: 1}, "texts_without_end": {no_eos: 2}}
    assert tally.notes()[1] == f"data: nothing is put at the end of a text: {no_eos} (2, the first at x:0)."


def test_the_token_that_ends_every_reply():
    for name, (template, added, ender) in ENDERS.items():
        tokenizer = tokenizer_of(template, *added)
        expected = [] if "plain" in name else [tokenizer.convert_tokens_to_ids(ender.strip())]
        assert ending_ids(tokenizer) == expected, name
    assert ending_ids(tokenizer_of(None)) == []
    either = (
        EACH + "{{ m.content }}{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|over|>{% endif %}"
        "{% endfor %}"
    )
    assert ending_ids(tokenizer_of(either, "<|return|>", "<|over|>")) == []


def test_the_template_may_say_itself_what_the_assistant_writes():
    """Transformers' {% generation %}; an ender outside of it is labelled too, and other turns' are not."""
    inside = (
        EACH
        + "<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}<i>{{ m.content }}<|fin|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|fin|>{% endif %}\n{% endfor %}"
    )
    outside = inside.replace("<|fin|>{% endgeneration %}", "{% endgeneration %}<|fin|>")
    assert outside != inside
    for template in (inside, outside):
        tokenizer = tokenizer_of(template, "<|fin|>")
        assert labelled(chat(*TWO), tokenizer) == ["<i>Hello you.<|fin|>", "<i>Fine, two.<|fin|>"]
        assert labelled(chat(*TWO, reply_from=2), tokenizer)[-1] == "<i>Fine, two.<|fin|>"
        assert "".join(labelled(chat(*TWO, untrained=frozenset({1})), tokenizer)).count("Hello") == 0


def test_thoughts_that_a_template_rewrites():
    tokenizer = tokenizer_of(THINKING, "<|im_start|>", "<|im_end|>")
    first, second = "<think>\nhm one\n</think>\n\nHello you.", "<think>\nhm two\n</think>\n\nFine, two."
    both = chat(TWO[0], ("assistant", first), TWO[2], ("assistant", second))
    tally = Tally()
    assert labelled(both, tokenizer, tally=tally) == ["Hello you.<|im_end|>", f"{second}<|im_end|>"]
    assert tally.record() == {"left_out_by_template": {"thoughts (`<think>`)": 1}}
    keys = ({}, {"reasoning_content": "hm one"}, {}, {"reasoning_content": "hm two"})
    tally = Tally()
    assert labelled(chat(*TWO, keys=keys), tokenizer, tally=tally) == ["Hello you.<|im_end|>", f"{second}<|im_end|>"]
    assert tally.record() == {"left_out_by_template": {"`reasoning_content` of a turn": 1}}
    # a thought that the row has not is the template's, not the model's
    assert labelled(chat(*TWO), tokenizer) == ["Hello you.<|im_end|>", "Fine, two.<|im_end|>"]


def test_calls_of_tools_are_rendered_and_labelled():
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns = (("user", "1+1"), ("assistant", ""), ("tool", "2"), ("assistant", "Two"))
    document = chat(*turns, keys=({}, {"tool_calls": [call]}, {}, {}))
    tokenizer = tokenizer_of(THINKING, "<|im_start|>", "<|im_end|>")
    written = '<call>add({"a": 1})</call><|im_end|>'
    assert labelled(document, tokenizer) == [f"{written}", "Two<|im_end|>"]
    tally = Tally()
    assert labelled(document, tokenizer_of(CHATML), tally=tally) == ["Two<|im_end|>"]  # never an empty reply
    assert "assistant\n<|im_end|>" not in "".join(labelled(document, tokenizer_of(CHATML), response_only=False))
    assert tally.record()["left_out_by_template"] == {"`tool_calls` of a turn": 1}
    plain = tokenizer_of(None)
    assert labelled(document, plain)[0] == '{"name": "add", "arguments": {"a": 1}}<|end|>'
    # a template that wants arguments as a string and no content, as R1's
    tokenizer = tokenizer_of(
        EACH
        + "{% if m.content is not defined %}{% for c in m.tool_calls %}<c>{{ c.function.name + c.function.arguments }}"
        "{% endfor %}{% else %}<{{ m.role }}>{{ m.content }}{% endif %}<fin>{% endfor %}"
    )
    assert labelled(document, tokenizer) == ['<c>add{"a": 1}<fin>', "Two<fin>"]


def test_a_call_without_which_a_template_refuses_the_rest_or_leaves_it_out():
    """As gpt-oss, which wants a call before what a tool says, and Gemma 4, which writes both in one turn."""
    head = "<|start|>{{ m.role }}<|message|>"
    refusing = (
        "{% set ns = namespace(name='') %}"
        + EACH
        + "{% if m.tool_calls %}{% set ns.name = m.tool_calls[0].function.name %}"
        "<|start|>assistant to={{ ns.name }}<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
        "{% elif m.role == 'tool' %}{% if not ns.name %}{{ raise_exception('no call') }}{% endif %}"
        "<|start|>{{ ns.name }}<|message|>{{ m.content }}<|over|>{% else %}"
        + head
        + "{{ m.content }}<|over|>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    one_turn = (
        EACH + "{% if m.role != 'tool' %}" + head + "{% for c in m.tool_calls or [] %}<c>{{ c.function.name }}</c>"
        "{% if loop.last and messages[1].tool_calls and messages | length > 2 %}<r>{{ messages[2].content }}</r>"
        "{% endif %}{% endfor %}{{ m.content }}<|over|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}"
    )
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = (("user", "1+1"), ("assistant", ""), ("tool", "2 it is"), ("assistant", "Two"))
    document = chat(*turns, keys=({}, {"tool_calls": [call]}, {}, {}))
    assert labelled(document, tokenizer_of(refusing)) == [' to=add<|message|>{"a": 1}<|call|>', "Two<|over|>"]
    found = labelled(document, tokenizer_of(one_turn))
    assert found == ["<c>add</c>", "Two<|over|>"]


def test_turns_that_are_not_trained_on_have_no_label():
    tokenizer = tokenizer_of(CHATML)
    document = chat(*TWO, untrained=frozenset({1}))
    assert labelled(document, tokenizer) == ["Fine, two.<|im_end|>"]
    assert "Hello" not in "".join(labelled(document, tokenizer, response_only=False))
    assert "Hi there" in "".join(labelled(document, tokenizer, response_only=False))
    assert labelled(chat(*TWO, reply_from=2), tokenizer) == ["Fine, two.<|im_end|>"]


def test_what_a_template_leaves_out_is_counted():
    tokenizer = tokenizer_of(
        EACH + "{% if m.role != 'tool' %}<{{ m.role }}>{{ m.content }}<fin>{% endif %}{% endfor %}"
    )
    turns = (("user", "1+1"), ("assistant", "Wait"), ("tool", "2"), ("assistant", "Two"), ("tool", "o"))
    tally = Tally()
    document = chat(*turns, keys=({}, {"mood": "good"}, {}, {}, {}), template_keys={"tools": [{"name": "add"}]})
    assert labelled(document, tokenizer, tally=tally) == ["Wait<fin>", "Two<fin>"]
    assert tally.record() == {
        "left_out_by_template": {"turns of the role `tool`": 2, "`mood` of a turn": 1, "`tools`": 1}
    }


def test_a_template_that_wants_contents_in_parts():
    template = (
        EACH + "{{ m.role }}: {% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
        "{% endfor %}<fin>\n{% endfor %}"
    )
    assert labelled(chat(*TWO), tokenizer_of(template)) == ["Hello you.<fin>", "Fine, two.<fin>"]


def test_parts_and_generation_together():
    template = (
        EACH + "{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content[0].text }}<fin>"
        "{% endgeneration %}{% else %}{{ m.content[0].text }}{% endif %}\n{% endfor %}"
    )
    assert labelled(chat(*TWO), tokenizer_of(template)) == ["Hello you.<fin>", "Fine, two.<fin>"]


def test_labels_agree_with_those_that_trl_wrote_into_the_same_templates():
    """TRL's copies of the families' templates, with `{% generation %}` put in by hand, but for the blank at the end."""
    folder = Path(trl.__file__).parent / "chat_templates"
    for name in ("cohere", "cohere2", "gemma3", "lfm2", "llama3", "qwen2_5", "qwen3_instruct_2507", "qwen3_vl"):
        tokenizer = tokenizer_of((folder / f"{name}.jinja").read_text("utf-8"))
        tokenizer.bos_token = "<|start|>"
        ours = labelled(chat(*TWO), tokenizer)
        turns = [{"role": role, "content": content} for role, content in TWO]
        written, spans = render_jinja_template(
            [turns],
            chat_template=(folder / f"{name}_training.jinja").read_text("utf-8"),
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
        theirs = [written[0][start:end] for start, end in spans[0]]
        assert "".join(ours) == "".join(part.strip() for part in theirs)
        assert len(ours) == 2


def test_a_completion_is_as_it_is_and_its_prompt_has_no_label():
    tokenizer = tokenizer_of(CHATML)
    document = Document(
        "completion", "x", "Review: fine\nSentiment: positive", reply_from=len("Review: fine\nSentiment:")
    )
    assert labelled(document, tokenizer) == [" positive<|end|>"]
    assert labelled(document, tokenizer, response_only=False) == [f"{document.text}<|end|>"]


def test_turns_say_whether_they_are_empty():
    assert Turn("assistant", " \n").empty_reply
    assert not Turn("assistant", "", {"tool_calls": [{}]}).empty_reply
    assert not Turn("user", "").empty_reply
