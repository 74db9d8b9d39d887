"""Our tasks on local rows: `tasks/*.yaml`, in the format of lm-evaluation-harness."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from .sandbox import run_untrusted
from .task_rows import numbered_rows


@cache
def definitions() -> dict[str, dict[str, Any]]:
    """Our tasks by name."""
    folder = files(__package__).joinpath("tasks")
    loaded = [
        yaml.safe_load(file.read_text(encoding="utf-8")) for file in folder.iterdir() if file.name[-5:] == ".yaml"
    ]
    return {definition["task"]: definition for definition in loaded}


def local_tasks(folder: Path, names: Sequence[str], unconfined: list[str]) -> list[dict[str, Any]]:
    """Our definitions with the paths of their files filled in; MMLU as one task per subject.

    Args:
        unconfined: gets the name of each HumanEval row whose program ran without isolation.
    """
    found: list[dict[str, Any]] = []
    for name in names:
        definition = definitions()[name]
        paths = {split: str(folder / file) for split, file in definition["dataset_kwargs"]["data_files"].items()}
        task = definition | {"dataset_kwargs": {"data_files": paths}}
        if name == "humaneval":
            task["process_results"] = _passes(unconfined)
        found += _by_subject(task) if name == "mmlu" else [task]
    return found


def _passes(unconfined: list[str]) -> Callable[[dict[str, Any], Sequence[str]], dict[str, float]]:
    """Whether the first answer, put after the prompt, passes the row's tests; notes rows that ran without isolation."""

    def passes(row: dict[str, Any], answers: Sequence[str]) -> dict[str, float]:
        outcome = run_untrusted(f"{row['prompt']}{answers[0]}\n{row['test']}\ncheck({row['entry_point']})")
        if not outcome.isolated:
            unconfined.append(str(row.get("task_id")))
        return {"pass@1": float(outcome.passed)}

    return passes


def _by_subject(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One task per subject of MMLU, since examples are of the question's own subject."""
    path = Path(task["dataset_kwargs"]["data_files"]["test"])
    subjects = dict.fromkeys(row["subject"] for _, row in numbered_rows(path))
    for subject in subjects:
        choose = partial(_of_subject, subject=subject)
        yield task | {
            "task": f"mmlu_{subject}",
            "process_docs": choose,
            "fewshot_config": task["fewshot_config"] | {"process_docs": choose},
        }


def _of_subject(rows: Any, *, subject: str) -> Any:
    return rows.filter(lambda row: row["subject"] == subject)


def hashes(name: str, folder: Path) -> dict[str, str]:
    names = definitions()["mmlu" if name.startswith("mmlu_") else name]["dataset_kwargs"]["data_files"].values()
    return {file: _sha256(folder / file) for file in names}


@cache
def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
