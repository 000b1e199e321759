import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from glassformer.errors import TextError
from glassformer.text.config import DataConfig, TokenizerConfig
from glassformer.text.shards import Prepared, prepare

DATA = DataConfig(paths=("texts",), validation=0.2)
BPE = TokenizerConfig(vocab=300)


def write_texts(base: Path, count: int = 40) -> None:
    (base / "texts").mkdir(exist_ok=True)
    for number in range(count):
        (base / f"texts/{number:03}.txt").write_text(f"This is document {number}.\n" * (number % 7))


def run(
    base: Path, data: DataConfig = DATA, tokenizer: TokenizerConfig = BPE, **settings: object
) -> Prepared:
    return prepare(data, tokenizer, base=base, cache=base / "cache", **settings)  # type: ignore[arg-type]


def test_both_sides_hold_every_document_with_text_once(tmp_path: Path) -> None:
    write_texts(tmp_path)
    made = run(tmp_path)
    found = {}
    for store in (made.train, made.validation):
        for number, name in enumerate(store.names):
            ids = store.ids[store.starts[number] : store.starts[number + 1]]
            assert ids[-1] == made.tokenizer.end_of_text
            found[name] = made.tokenizer.decode(ids)
    texts = {path.name: path.read_text() for path in (tmp_path / "texts").iterdir()}
    assert found == {name: text for name, text in texts.items() if text}
    assert 0 < made.validation.num_documents < made.train.num_documents
    assert made.train.num_bytes + made.validation.num_bytes == sum(map(len, texts.values()))


def test_the_same_text_is_found_in_the_cache_and_nothing_is_written(tmp_path: Path) -> None:
    write_texts(tmp_path)
    first = run(tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    messages: list[str] = []
    second = run(tmp_path, progress=messages.append)
    assert messages == ["reading the text"]
    assert {path: path.stat().st_mtime_ns for path in second.path.rglob("*")} == stamps
    assert (second.digest, second.report, second.warnings) == (first.digest, first.report, first.warnings)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.path.name]


def test_packing_and_weights_use_the_same_tokens_and_the_split_does_not(tmp_path: Path) -> None:
    write_texts(tmp_path)
    digest = run(tmp_path).digest
    assert run(tmp_path, DATA.model_copy(update={"packing": "fit", "mask_documents": True})).digest == digest
    assert run(tmp_path, DATA.model_copy(update={"validation": 0.4})).digest != digest
    assert run(tmp_path, tokenizer=TokenizerConfig(vocab=301)).digest != digest


def test_the_report_counts_the_tokens_that_were_written(tmp_path: Path) -> None:
    write_texts(tmp_path)
    made = run(tmp_path)
    (row,) = made.report["sources"]
    assert row["tokens"] == made.train.num_tokens + made.validation.num_tokens
    assert row["validation_documents"] == made.validation.num_documents
    assert row["empty"] == 6
    assert "6 of 40 documents are empty." in made.warnings


def test_a_given_tokenizer_is_used_as_it_is(tmp_path: Path) -> None:
    write_texts(tmp_path)
    first = run(tmp_path)
    first.tokenizer.save(tmp_path / "given.json")
    second = run(tmp_path, tokenizer=TokenizerConfig(path="given.json"))
    assert second.tokenizer.digest == first.tokenizer.digest
    assert (second.train.ids == first.train.ids).all()


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    write_texts(tmp_path)
    first = run(tmp_path)
    ids = np.array(first.train.ids)
    for name, damage in (
        ("train/ids.npy", lambda file: file.write_bytes(file.read_bytes()[:-2] + b"\1\0")),
        ("train/starts.npy", lambda file: file.unlink()),
        ("validation/manifest.json", lambda file: file.write_text("{")),
        ("tokenizer.json", lambda file: file.write_text("{}")),
        ("report.json", lambda file: file.write_text("")),
    ):
        damage(first.path / name)
        messages: list[str] = []
        assert (run(tmp_path, progress=messages.append).train.ids == ids).all()
        assert any("damaged and are made again" in message for message in messages)


SCRIPT = """
import sys
from pathlib import Path
from glassformer.text.config import DataConfig, TokenizerConfig
from glassformer.text.shards import prepare
base = Path(sys.argv[1])
made = prepare(DataConfig(paths=("texts",), validation=0.2), TokenizerConfig(vocab=300), base=base,
               cache=base / "cache", progress=lambda message: print(message, flush=True))
print(made.digest, made.train.digest)
"""


def start(base: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(base)], stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once_end_with_the_same_tokens(tmp_path: Path) -> None:
    write_texts(tmp_path)
    processes = [start(tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].splitlines()[-1] for process in processes]
    made = run(tmp_path)
    assert outputs == [f"{made.digest} {made.train.digest}"] * 2
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [made.path.name]


@pytest.mark.parametrize("after", ["looking", "learning", "encoding", "encoded"])
def test_a_writer_killed_at_any_stage_leaves_nothing_that_is_used(tmp_path: Path, after: str) -> None:
    write_texts(tmp_path)
    with start(tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(after):
                process.send_signal(signal.SIGKILL)
                break
    partial = list((tmp_path / "cache").glob("*.partial-*"))
    made = run(tmp_path)
    assert made.train.num_documents + made.validation.num_documents == 34
    # What is left is kept for a day, as its writer might be alive on another machine, then removed.
    for folder in partial:
        os.utime(folder, (time.time() - 2 * 24 * 3600,) * 2)
    run(tmp_path, tokenizer=TokenizerConfig(vocab=301))
    assert not list((tmp_path / "cache").glob("*.partial-*"))


def test_text_that_changes_between_the_readings_is_noticed(tmp_path: Path) -> None:
    write_texts(tmp_path)

    def meddle(message: str) -> None:
        if message.startswith("encoding"):
            (tmp_path / "texts/001.txt").write_text("something else")

    with pytest.raises(TextError, match="The text changed while it was being read"):
        run(tmp_path, progress=meddle)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_large_corpus_is_sampled_for_the_tokenizer_the_same_way_each_time(tmp_path: Path) -> None:
    write_texts(tmp_path)
    sampled = TokenizerConfig(vocab=300, training_bytes=500)
    digests = set()
    for cache in ("one", "two"):
        digests.add(prepare(DATA, sampled, base=tmp_path, cache=tmp_path / cache).tokenizer.digest)
    assert len(digests) == 1


def test_paths_with_spaces_and_other_scripts_work(tmp_path: Path) -> None:
    base = tmp_path / "mes données 日本"
    base.mkdir()
    write_texts(base)
    assert run(base).train.num_documents > 0


def test_nothing_about_this_machine_is_kept_with_the_tokens(tmp_path: Path) -> None:
    write_texts(tmp_path)
    made = run(tmp_path)
    for file in made.path.rglob("*.json"):
        assert str(tmp_path) not in json.dumps(json.loads(file.read_text()))


def test_a_disk_without_room_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    write_texts(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(TextError, match=r"cannot be written to .*File too large.*room for about"):
            run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "cache").iterdir()) == []
