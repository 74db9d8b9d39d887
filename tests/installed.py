"""What `make dist` does with an installed package: its files are the tree's, and its commands work outside of it.

    python -I tests/installed.py TREE

Run by the Python of an environment that has secateur and its dependencies alone.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import files, version
from pathlib import Path

TREE = Path(sys.argv[1]).resolve()
WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "
HEAVY = ("torch", "transformers", "matplotlib", "gguf", "datasets", "pyarrow", "rich")
"""What `import secateur` must do without."""


def run(*arguments: str) -> str:
    """What a command prints; it ends well."""
    started = time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("secateur")), *arguments],
        env=environment, capture_output=True, encoding="utf-8",
    )  # fmt: skip
    print(f"{time.perf_counter() - started:6.1f} s  secateur {' '.join(arguments)[:100]}", flush=True)
    if done.returncode:
        sys.exit(f"ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def same_files() -> int:
    """The package has every file of the tree and no other, with the same contents; how many."""
    wanted = {path.relative_to(TREE / "src"): path for path in (TREE / "src" / "secateur").rglob("*") if path.is_file()}
    found = {
        Path(str(file)): Path(str(file.locate()))
        for file in files("secateur") or []
        if file.parts[0] == "secateur" and file.suffix != ".pyc"
    }
    assert found.keys() == wanted.keys(), sorted(map(str, found.keys() ^ wanted.keys()))
    assert all(found[name].read_bytes() == wanted[name].read_bytes() for name in wanted)
    return len(wanted)


def light() -> None:
    """`import secateur` loads none of the heavy packages."""
    code = "import secateur, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-I", "-c", code], stdout=subprocess.PIPE, check=True, encoding="utf-8")
    assert not set(HEAVY) & set(loaded.stdout.split())


def use(place: Path) -> None:
    """Listings, a recipe on a tiny model with its card and page, a page anew, and the quickstart."""
    sys.path.append(str(TREE / "tests"))
    from tiny import save_tiny

    assert "--help-all" in run("prune", "--help")
    assert f"secateur {version('secateur')}" in run("--version")
    recipes = run("recipes")
    assert all(path.stem in recipes for path in (TREE / "src" / "secateur" / "recipes").glob("*.yaml"))
    assert json.loads(run("schema"))
    assert "llama" in run("families")
    save_tiny(place / "model", layers=4)
    (place / "text.txt").write_text(WORDS * 60, encoding="utf-8")
    recipe = ["prune", "--recipe", "best", "--model", str(place / "model"), "--data", str(place / "text.txt")]
    recipe += ["--sparsity", "0.3", "--steps", "10", "--batch-size", "2", "--accumulation", "1", "--seq-len", "32"]
    run(*recipe, "--output", str(place / "out"), "--dry-run")
    run(*recipe, "--output", str(place / "out"))
    assert (place / "out" / "README.md").read_text(encoding="utf-8").startswith("---\n")
    run("report", str(place / "out"), "--output", str(place / "page.html"))
    for page in (place / "out" / "report.html", place / "page.html"):
        text = page.read_text(encoding="utf-8")
        assert "<style>" in text
        assert "<svg" in text
    run("quickstart", "--steps", "10", "--output", str(place / "quickstart"))
    assert json.loads((place / "quickstart" / "result.json").read_text(encoding="utf-8"))["status"] == "done"


def main() -> None:
    import secateur

    assert not Path(secateur.__file__).is_relative_to(TREE.parent.parent / "src"), secateur.__file__
    print(f"secateur {version('secateur')}: {same_files()} files, as in the tree")
    light()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        use(Path(place))


if __name__ == "__main__":
    main()
