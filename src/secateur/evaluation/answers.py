"""Answers to rows of one's own: the likeliest of the few that the rows have, or what the model writes."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config.evaluation import EvalConfig
from ..data.documents import read_data
from ..data.forms.document import Document
from ..data.forms.tally import Tally
from ..data.labels import Labeller
from ..data.packing import IGNORED
from ..models.benchmark import evaluating, generate_batch
from ..models.devices import autocast
from ..system.errors import InputError, all_faults
from .figures import TaskFigure
from .perplexity import Told, token_faults

FEW = 20
"""So many different answers are chosen from; of more, the model writes its own."""
TOKENS_PER_PASS = 4096


@dataclass(frozen=True)
class Rows:
    """Rows with an answer each, as they are asked of a model."""

    spec: str
    documents: tuple[Document, ...]
    wanted: tuple[str, ...]
    """The right answer of each."""
    choices: tuple[str, ...]
    """What is chosen from; empty: the model writes."""
    after: str | None
    """Of what is written and of the rows' answers, only what stands behind this counts."""
    notes: tuple[str, ...] = ()

    @property
    def commonest(self) -> tuple[str, float]:
        """An answer, and the share of rows that it is right for: what a model has that always gives it."""
        answer, count = Counter(self.key(text) for text in self.wanted).most_common(1)[0]
        return answer, count / len(self.wanted)

    def key(self, answer: str) -> str:
        """What of an answer is compared: behind `after`, its first line there, without commas between digits."""
        if self.after is None:
            return answer.strip()
        _, found, rest = answer.rpartition(self.after)
        line = rest.strip().split("\n")[0].strip().rstrip(".") if found else ""
        return "".join(c for i, c in enumerate(line) if not (c == "," and line[i + 1 : i + 2].isdigit()))


def read_rows(config: EvalConfig) -> Rows:
    """The rows of `--answers`.

    Raises:
        InputError: what reading data refuses; text, or a conversation that does not end with an answer; an answer
            without what `--answer-after` names.
    """
    assert config.answers is not None
    documents, tally = read_data(config.answers, evaluation=True)
    documents = documents[: config.limit]
    for document in documents:
        if document.kind == "text" or (document.kind == "chat" and document.messages[-1][0] != "assistant"):
            raise InputError(
                f"--answers: {document.origin} is no question with its answer: give rows such as "
                "{'question': ..., 'answer': ...}, or leave its text to --data."
            )
    wanted = tuple(_answer(document) for document in documents)
    rows = Rows(config.answers, tuple(documents), wanted, (), config.answer_after, tuple(tally.notes()))
    for document, answer in zip(documents, wanted, strict=True):
        if not rows.key(answer):
            what = f"has nothing behind {rows.after!r}" if rows.after is not None else "is empty"
            raise InputError(f"--answers: the answer of {document.origin} {what}: mend the row, or leave it out.")
    different = tuple(sorted(set(wanted)))
    chosen = config.answer_after is None and 2 <= len(different) <= FEW and 2 * len(different) <= len(wanted)
    return replace(rows, choices=different if chosen else ())


@dataclass(frozen=True)
class Asked:
    """Rows in a model's tokens."""

    ids: tuple[list[int], ...]
    """Of each row and choice, or of each row's prompt."""
    begins: tuple[int, ...]
    """Where the answer begins in each."""


def encode_rows(rows: Rows, tokenizer: Any, name: str, positions: int | None, embeddings: int | None,
                new_tokens: int) -> Asked:  # fmt: skip
    """The rows as the model is trained on them with `--response-only`.

    Args:
        positions, embeddings: how many the model has; None: not known.
    Raises:
        InputError: a row that the chat template refuses, or that is too long; tokens that the model does not know.
    """
    labeller, found, begins = Labeller(tokenizer, True, Tally()), [], []
    for document, wanted in zip(rows.documents, rows.wanted, strict=True):
        for choice in rows.choices or (wanted,):
            ids, labels = labeller.tokenise(_answered(document, choice))
            begin = next((at for at, label in enumerate(labels) if label != IGNORED), None)
            if not begin:
                raise InputError(f"--answers: {document.origin}: the answer {choice!r} has no place in what is asked.")
            found.append(ids if rows.choices else ids[:begin])
            begins.append(begin)
            longest = len(found[-1]) + (0 if rows.choices else new_tokens)
            if positions is not None and longest > positions:
                raise InputError(
                    f"--answers: {document.origin} takes {longest} tokens, more than the {positions} positions of "
                    f"{name}: shorten it, or leave it out."
                )
    most = torch.tensor([max(ids) for ids in found])
    all_faults(token_faults(most, embeddings, name))
    return Asked(tuple(found), tuple(begins))


def measure_rows(
    model: Any, tokenizer: Any, rows: Rows, asked: Asked, config: EvalConfig, dtype: torch.dtype, told: Told
) -> TaskFigure:
    """How many rows the model answers as they say.

    Args:
        model: a causal LM on its device.
        dtype: of the computation; the half precisions go through autocast.
    """
    if rows.choices:
        losses = _losses(model, asked, config.batch_size or 16, dtype, told).view(len(rows.wanted), -1)
        said = [rows.choices[number] for number in losses.argmin(1).tolist()]
        how = f"the likeliest of {', '.join(repr(choice.strip()) for choice in rows.choices)}"
    else:
        said = _written(model, tokenizer, asked, config, dtype, told)
        how = "what the model writes, greedily" + (f", behind {rows.after!r}" if rows.after is not None else "")
    values = tuple(float(rows.key(a) == rows.key(b)) for a, b in zip(said, rows.wanted, strict=True))
    value, (answer, share) = statistics.fmean(values), rows.commonest
    stderr = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return TaskFigure(
        metric="accuracy", value=value, stderr=stderr, rows=len(values), num_fewshot=0, version=None,
        source=f"rows of {rows.spec}: {how}; always {answer!r}: {share:.2%}", files={},
        metrics={"accuracy": value, "commonest answer alone": share}, row_values=values,
        stderrs={} if stderr is None else {"accuracy": stderr},
        row_texts=tuple(document.raw for document in rows.documents),
    )  # fmt: skip


def row_name(spec: str, tasks: Sequence[str] = ()) -> str:
    """What the figure is called: the file's name without its type, told from a task of that name."""
    name = Path(spec).name.split(".")[0] or spec
    return f"{name} (rows)" if name in tasks else name


def _losses(model: nn.Module, asked: Asked, batch_size: int, dtype: torch.dtype, told: Told) -> Tensor:
    """Summed negative log-likelihood of each answer with what ends it, (answers,) float64."""
    device = next(model.parameters()).device
    found = torch.zeros(len(asked.ids), dtype=torch.float64)
    done = 0
    with evaluating(model), torch.inference_mode(), autocast(device.type, dtype):
        for batch in _batches([len(ids) for ids in asked.ids], batch_size):
            ids, mask = _padded([asked.ids[i] for i in batch], left=False)
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
            for row, i in enumerate(batch):
                begin, end = asked.begins[i], len(asked.ids[i])
                right = ids[row, begin:end].to(device)
                part = logits[row, begin - 1 : end - 1].float()
                found[i] = float(nn.functional.cross_entropy(part, right, reduction="sum"))
            done += len(batch)
            told(done, len(asked.ids))
    return found


def _written(model: Any, tokenizer: Any, asked: Asked, config: EvalConfig, dtype: torch.dtype, told: Told) -> list[str]:
    device, said, done = next(model.parameters()).device, [""] * len(asked.ids), 0
    for batch in _batches([len(ids) + config.max_new_tokens for ids in asked.ids], config.batch_size or 16):
        ids, mask = _padded([asked.ids[i] for i in batch], left=True)
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        for i, text in zip(batch, generate_batch(model, tokenizer, inputs, config.max_new_tokens, dtype), strict=True):
            said[i] = text
        done += len(batch)
        told(done, len(asked.ids))
    return said


def _batches(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Rows of about one length together, `most` of them and about `TOKENS_PER_PASS` tokens at a time."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not batches or len(batches[-1]) >= most or (len(batches[-1]) + 1) * lengths[i] > TOKENS_PER_PASS:
            batches.append([])
        batches[-1].append(i)
    return batches


def _padded(rows: list[list[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, (rows, longest)."""
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(len(row))
        ids[number, place], mask[number, place] = torch.tensor(row), 1
    return ids, mask


def _answer(document: Document) -> str:
    return document.messages[-1][1] if document.kind == "chat" else document.text[document.reply_from :]


def _answered(document: Document, answer: str) -> Document:
    """The same question with another answer, of which alone a loss is taken."""
    if document.kind != "chat":
        return replace(document, text=document.text[: document.reply_from] + answer)
    earlier = document.messages[:-1]
    return replace(
        document,
        messages=(*earlier, (document.messages[-1][0], answer)),
        turn_keys=(*document.turn_keys[:-1], {}) if document.turn_keys else (),
        untrained=frozenset(range(len(earlier))),
    )
