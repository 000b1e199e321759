import json
import random
from pathlib import Path

import pytest

from glassformer.text.config import DataConfig, TokenizerConfig
from glassformer.text.report import TextReport, text_report
from glassformer.text.tokenizer import Tokenizer


def prose(seed: int, words: int = 400) -> str:
    rng = random.Random(seed)
    return "\n".join(" ".join(str(rng.getrandbits(20)) for _ in range(8)) for _ in range(words // 8))


@pytest.fixture
def report(tmp_path: Path) -> TextReport:
    files = {
        "a.txt": prose(1).encode(),
        "b-copy.txt": prose(1).encode(),
        "c-near.txt": (prose(1) + "\nand one line more").encode(),
        "d-empty.txt": b"",
        "e-blank.txt": b" \n\t\n",
        "f-line.txt": b"one line only\n",
        "g-latin.txt": "caf\xe9\nok\nna\xefve\n".encode("latin-1"),
        "h-repeats.txt": b"the same line again and again, word for word, without an end\n" * 50,
        "i-nul.txt": b"x" * 200 + b"\0" + b"y" * 200,
        "j-giant.txt": b"0123456789abcdef\n" * 70_000,
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "k.txt.gz").write_bytes(b"not gzip")
    (tmp_path / "l.png").write_bytes(b"x")
    return text_report(DataConfig(paths=(".",)), base=tmp_path)


def test_each_kind_of_document_is_counted(report: TextReport) -> None:
    (row,) = report.rows()
    found = {name: row[name] for name in row if name not in ("bytes", "characters", "lines")}
    assert {name: value for name, value in found.items() if not name.startswith("validation")} == {
        "source": ".",
        "documents": 10,
        "empty": 1,
        "whitespace_only": 1,
        "one_line": 2,
        "giant": 1,
        "exact_duplicates": 1,
        "near_duplicates": 1,
        "repetitive": 3,
        "encoding_errors": 1,
        "with_nul": 1,
        "skipped": 2,
    }


def test_faults_are_named_with_their_lines(report: TextReport) -> None:
    assert report.encoding_errors == (("g-latin.txt", "byte 0xE9 on line 1, 0xEF on line 3"),)
    first, second = report.skipped
    assert (first.name, first.error) == ("k.txt.gz", True)
    assert (second.name, second.reason) == ("l.png", "binary")
    assert report.most_repetitive[0][0] == "j-giant.txt"
    assert "1 of 10 documents are exact copies of an earlier one." in report.warnings


def test_the_report_is_json_with_a_schema_and_a_chart_of_rows(report: TextReport) -> None:
    content = json.loads(json.dumps(report.to_dict()))
    assert (content["schema"], content["version"]) == ("glassformer.text_report", 1)
    assert {row["side"] for row in report.chart_rows()} == {"train", "validation"}
    assert sum(row["bytes"] for row in report.chart_rows()) == report.rows()[0]["bytes"]


def test_several_sources_are_summed_and_tokens_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "b.txt").write_text("défg\n")
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes"), [])
    report = text_report(DataConfig(paths=("a.txt", "b.txt")), base=tmp_path, tokenizer=tokenizer)
    rows = report.rows()
    assert [row["source"] for row in rows] == ["a.txt", "b.txt", "all"]
    assert [row["tokens"] for row in rows] == [4, 7, 11]
    assert [row["characters"] for row in rows] == [3, 5, 8]
    assert rows[2]["bytes_per_token"] == pytest.approx(9 / 11)


def test_text_that_is_in_training_and_validation_is_measured(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"{number}.txt").write_text(prose(number) + "\n" + prose(1000))
    report = text_report(DataConfig(paths=(".",), validation=0.3), base=tmp_path)
    assert report.overlap_stretches == pytest.approx(0.5, abs=0.05)
    assert any("of the validation text" in warning and "training" in warning for warning in report.warnings)
