"""Files of a run that nobody trained, in a folder of their own: what the stage `report` reads."""

import json

import numpy as np
import pandas as pd
from helpers import small_params
from ruamel.yaml import YAML

from pipeline.article import PRINTED
from pipeline.files import save_arrays, write_csv, write_json
from pipeline.folds import TrainingData, make_folds
from pipeline.metrics import evaluate, expected_public_score, fold_figures, history_table
from pipeline.stages import report
from pipeline.training.members import members


def predict(labels, networks, errors, random):
    """Probabilities `(networks, n, 10)`; about the share `errors` of them is wrong."""
    given = np.where(random.random((networks, len(labels))) < errors, random.integers(0, 10), labels)
    probabilities = random.dirichlet(np.full(10, 0.02), (networks, len(labels))) * 0.3
    return (probabilities + 0.7 * np.eye(10)[given]).astype("float32")


class Finished:
    """A folder with the files of a finished run."""

    def __init__(self, folder, mnist):
        self.folder, self.mnist = folder, mnist
        (folder / "data").mkdir()

    def write(self, folds=5, epochs=30, rows=1500, errors=0.03, held_out=True, steps=1001, reads=True):
        random = np.random.default_rng(0)
        architecture = "cycle" if reads else "grid_rows"
        params = small_params(
            prepare={"folds": folds, "hold_out_mnist_test": held_out},
            train={"epochs": epochs},
            model={"architecture": architecture},
        )
        YAML(typ="safe").dump(params.model_dump(), self.folder / "params.yaml")
        in_test = np.arange(rows) % 7 == 0
        images = np.where(
            in_test[:, None, None], *(self.mnist[f"{part}_images"][:rows] for part in ("test", "train"))
        )
        labels = np.where(in_test, *(self.mnist[f"{part}_labels"][:rows] for part in ("test", "train")))
        data = TrainingData(images, labels, make_folds(labels, folds, 0, in_test & held_out))
        index = np.where(in_test, np.arange(rows), -1)
        if not (self.folder / "data/mnist.npz").exists():
            np.savez(self.folder / "data/mnist.npz", **self.mnist)
        save_arrays(
            self.folder / "data/digits.npz", images=images, labels=labels, folds=data.folds, mnist_index=index
        )
        oof = np.where(data.folds[:, None] >= 0, predict(labels, 1, errors, random)[0], np.nan)
        save_arrays(self.folder / "data/oof.npz", probabilities=oof)
        each = predict(self.mnist["test_labels"], folds, errors, random)
        clean = np.ones(10_000, bool)
        clean[index[(index >= 0) & (data.folds >= 0)]] = False
        reading = random.dirichlet(np.ones(10), (3, 6, 26)) if reads else []
        save_arrays(
            self.folder / "data/check.npz",
            probabilities=each.mean(axis=0), each=each, clean=clean, shown=np.arange(6), reading=reading,
        )  # fmt: skip
        figures = {"loss": 0.4, "accuracy": 0.9, "val_loss": 0.1, "val_accuracy": 1 - errors}
        epoch_of = {"images": 1000, "seconds": 1.5, "input_seconds": 0.1}
        history = history_table(
            {
                member: [{"epoch": epoch + 1, **figures, **epoch_of} for epoch in range(epochs)]
                for member in members(params)
            }
        )
        write_csv(self.folder / "metrics/history.csv", history)
        for name, content in fold_figures(data, oof, history).items():
            write_json(self.folder / f"metrics/{name}.json", content)
        expected = expected_public_score(990, 1000, 28_000)
        test = evaluate(each.mean(axis=0)[clean], self.mnist["test_labels"][clean], seconds=1.0)
        write_json(self.folder / "metrics/ensemble.json", {**expected, "images": 28_000, "seconds": 1.0})
        write_json(self.folder / "metrics/check.json", test)
        write_json(self.folder / "metrics/article.json", {**test, "images": 10_000})
        curve = pd.DataFrame({"step": [*range(0, steps, 10), steps - 1]}).drop_duplicates()
        curve = curve.assign(accuracy_batch=0.9, accuracy=0.9)
        curve["article_accuracy_batch"] = curve["step"].map(
            {step: each for step, (_, each) in PRINTED.items()}
        )
        write_csv(self.folder / "metrics/article.csv", curve)
        write_json(
            self.folder / "data/raw/source.json",
            {"source": "mnist", "competition": "digit-recognizer", "seed": 1},
        )
        return self

    def report(self):
        report.main()
        return (self.folder / "metrics/report.html").read_text()

    def json(self, name):
        return json.loads((self.folder / "metrics" / name).read_text())
