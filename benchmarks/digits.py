"""Handwritten digits with a plain network: accuracy, seconds and calibration over several seeds.

    python benchmarks/digits.py [--seeds 0 1 2] [--picture docs/digits-reliability.svg] [--json]

scikit-learn's 1,797 digits of 8x8 pixels, split twice: `accuracy` holds out a fifth for validation, on which the
temperature is fitted, and a fifth for the test; `calibration` holds out 30% and half, since so few rows are
wrong that only many of them tell how often. The test is read once, when all is done. The picture is that of
`calibration` with the first seed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from glassformer import charts
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig
from glassformer.text.table_batches import TableBatches
from glassformer.text.table_config import TableConfig
from glassformer.text.tables import PreparedTable, prepare_table
from glassformer.use.calibrate import Calibration, Temperature
from glassformer.use.predict import calibrate, measure_calibration, predictor

SPLITS = {"accuracy": (0.2, 0.2), "calibration": (0.3, 0.5)}
STEPS, BATCH, RATE = 1500, 64, 3e-3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    results = []
    for split, (validation, test) in SPLITS.items():
        for seed in given.seeds:
            begin = time.perf_counter()
            config = TableConfig(validation=validation, test=test)
            data = prepare_table(config, "classes", base=Path())
            model = predictor(train(data, seed), data.columns)
            seconds = time.perf_counter() - begin
            scaled, temperature = calibrate(model, data.validation)
            before, after = (measure_calibration(one, data.test) for one in (model, scaled))
            about = {
                "split": split,
                "seed": seed,
                "train_rows": len(data.train),
                "seconds": round(seconds, 1),
            }
            results.append(about | measured(temperature, before, after))
            if given.picture and split == "calibration" and seed == given.seeds[0]:
                title = f"{before.num_rows} handwritten digits: says 70%, right 70%?"
                charts.save(charts.reliability(before.rows(), title=title), given.picture)
    if given.json:
        print(json.dumps(results))
        return
    for result in results:
        print("  ".join(f"{name} {value}" for name, value in result.items()))


def train(data: PreparedTable, seed: int) -> Network:
    config = NetworkConfig(inputs=data.num_inputs, outputs=data.num_outputs, hidden=(256,), dropout=0.3)
    torch.manual_seed(seed)  # of dropout
    network = Network(config, seed=seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    batches = TableBatches(data, batch=BATCH, seed=seed)
    for step in range(STEPS):
        arrays = {name: torch.from_numpy(array) for name, array in batches.batch(step).arrays().items()}
        optimizer.zero_grad()
        network.loss(**arrays).backward()
        optimizer.step()
        schedule.step()
    return network


def measured(temperature: Temperature, before: Calibration, after: Calibration) -> dict[str, Any]:
    return {
        "test_rows": before.num_rows,
        "accuracy": round(before.accuracy, 4),
        "confidence": round(before.confidence, 4),
        "ece": round(before.ece, 4),
        "ece_by_chance_high": round(before.ece_by_chance_high, 4),
        "temperature": round(temperature.value, 3),
        "standard_error": round(temperature.standard_error, 3),
        "fitted_on_wrong": temperature.num_wrong,
        "ece_scaled": round(after.ece, 4),
    }


if __name__ == "__main__":
    main()
