"""The tables of hardware: every value has a source and a date, and what has none says so."""

import math
import re
from importlib import resources

import pytest

from glassformer.errors import UsageError
from glassformer.plan.hardware import accelerator, accelerators, data_rows, processor
from glassformer.plan.presets import presets

VALUES = ("memory", "bandwidth", "scale_up", "domain", "scale_out", "power")


@pytest.mark.parametrize("one", accelerators().values(), ids=accelerators())
def test_every_value_has_a_source_and_a_date(one):
    assert one.as_of[:2] == "20"
    for value in (*one.peaks, *VALUES):
        told = one.provenance(value)
        assert one.as_of in told
        assert ("unverified: no source" in told) == (value in one.unverified)


@pytest.mark.parametrize("one", accelerators().values(), ids=accelerators())
def test_values_are_of_the_right_size(one):
    assert one.memory >= 16e9 or not one.memory
    assert 1e11 < one.bandwidth < 1e13
    assert all(1e12 < peak < 2e16 for peak in one.peaks.values()), one.peaks
    assert one.power == 0 or 50 < one.power < 2000
    assert all(0.4 < share <= 1 for share in one.achievable.values())
    for narrow, wide in (("fp8", "bf16"), ("fp4", "fp8"), ("bf16", "fp32")):
        if narrow in one.peaks and wide in one.peaks:
            assert one.peaks[narrow] >= one.peaks[wide], (narrow, wide)


def test_there_are_accelerators_of_many_kinds():
    assert len(accelerators()) >= 50
    assert {one.vendor for one in accelerators().values()} >= {
        "NVIDIA",
        "AMD",
        "Google",
        "AWS",
        "Intel",
        "Apple",
    }


def test_every_number_of_the_tables_is_one():
    for table in ("accelerators", "cpus"):
        for row in data_rows(table):
            assert row["verified"]
            assert row["source"]
            for column in row:
                if (
                    column.endswith(("_tflops", "_gbps", "_gb", "_w", "_ghz", "cores", "channels"))
                    and row[column]
                ):
                    assert math.isfinite(float(row[column]))


def test_no_table_speaks_of_how_it_was_collected():
    for table in ("accelerators", "cpus", "measured_steps", "training_runs", "failures", "energy", "prices",
                  "collectives", "checkpoint_times"):  # fmt: skip
        for row in data_rows(table):
            words = " ".join(text for text in row.values() if text)
            assert "from memory" not in words
            assert "stored" not in words


@pytest.mark.parametrize(
    ("given", "found"),
    [("h100 sxm", "H100-SXM-80GB"), ("h100", "H100-SXM-80GB"), ("A100", "A100-SXM-80GB"),
      ("RTX 5090", "RTX-5090"), ("mi210", "MI210"), ("epyc 9654", "EPYC-9654"),
     ("tpuv5e", "TPU-v5e"), ("l4", "L4")],
)  # fmt: skip
def test_names_are_found_in_any_spelling(given, found):
    assert accelerator(given).name == found


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(UsageError, match="no accelerator 'H101'"):
        accelerator("H101")
    with pytest.raises(UsageError, match="has no fp4 products"):
        accelerator("t4").peak("fp4")
    with pytest.raises(UsageError, match=r"no value 'memry'.*memory"):
        accelerator("t4").provenance("memry")


def test_a_processors_peak_is_cores_times_clock_times_flops_a_cycle():
    one = processor(8, 3.0, "avx2", memory=64e9, bandwidth=50e9)
    assert one.peaks == {"fp32": 8 * 3e9 * 32}
    assert processor(56, 2.0, "amx", memory=1e12, bandwidth=3e11).peaks["bf16"] == 56 * 2e9 * 1024
    assert accelerator("EPYC-9654").vendor == "AMD CPU"
    assert accelerator("EPYC-9654").bandwidth == pytest.approx(460.8e9)
    with pytest.raises(UsageError, match="no instructions 'avx3'"):
        processor(8, 3.0, "avx3", memory=1e9, bandwidth=1e9)
    with pytest.raises(UsageError, match="cores is 0"):
        processor(0, 3.0, "avx2", memory=1e9, bandwidth=1e9)


def test_the_page_of_sources_names_every_file_and_counts_its_rows():
    folder = resources.files("glassformer.plan") / "data"
    page = (folder / "SOURCES.md").read_text(encoding="utf-8")
    told = {name: int(count) for name, count in re.findall(r"^\| (\w+\.\w+) \| (\d+) \|", page, re.MULTILINE)}
    assert told.pop("presets.toml") == len(presets())
    assert told == {
        file.name: len(data_rows(file.name.removesuffix(".csv")))
        for file in folder.iterdir()
        if file.name.endswith(".csv")
    }
