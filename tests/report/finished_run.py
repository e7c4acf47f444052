"""Files of a finished run without a training: the input of the stage `report`, in a folder."""

import json

import numpy as np
import pandas as pd
from helpers import small_params
from ruamel.yaml import YAML

from pipeline.competition import COMPETITIONS
from pipeline.files import save_arrays, write_csv, write_json
from pipeline.folds import make_folds
from pipeline.metrics import evaluate
from pipeline.stages import report


def predict(labels, networks, classes, errors, random):
    """Probabilities `(networks, n, classes)`; on the share `errors` of images, most networks are wrong."""
    shape = networks, len(labels)
    wrong = (random.random(len(labels)) < errors) & (random.random(shape) < 0.9)
    answers = np.where(wrong, random.integers(0, classes, len(labels)), labels)
    return (0.3 * random.dirichlet(np.full(classes, 0.02), shape) + 0.7 * np.eye(classes)[answers]).astype(
        "f"
    )


class Finished:
    """A folder with the files of a finished run."""

    def __init__(self, folder, mnist):
        self.folder, self.mnist = folder, mnist
        (folder / "data").mkdir()

    def write(
        self, folds=5, epochs=30, rows=1500, errors=0.03, held_out=True, reads=True, slug="digit-recognizer"
    ):
        """Write all files; `held_out` says whether test images among the rows were held out."""
        random, competition = np.random.default_rng(0), COMPETITIONS[slug]
        size, classes, data = competition.size, competition.classes, self.folder / "data"
        architecture = "cycle" if reads else "grid_rows"
        params = small_params(
            prepare={"folds": folds}, model={"architecture": architecture}, download={"competition": slug}
        )
        YAML(typ="safe").dump(params.model_dump(), self.folder / "params.yaml")
        source = {"source": "mnist", "competition": slug, "seed": 1}
        write_json(data / "raw/source.json", source)

        in_test = (np.arange(rows) % 7 == 0) & (competition.test == "mnist")
        images, labels = self.mnist["train_images"][:rows, :size, :size], self.mnist["train_labels"][:rows]
        split = make_folds(labels, folds, 0, in_test & held_out)
        index = np.where(in_test, np.arange(rows), -1)
        save_arrays(data / "digits.npz", images=images, labels=labels, folds=split, test_index=index)
        tests = 10_000 if competition.test else 0
        test_images, test_labels = self.mnist["test_images"][:tests], self.mnist["test_labels"][:tests]
        save_arrays(data / "clean.npz", images=test_images, labels=test_labels)

        oof = np.where(split[:, None] >= 0, predict(labels, 1, classes, errors, random)[0], np.nan)
        save_arrays(data / "oof.npz", probabilities=oof, labels=labels, folds=split)
        each = predict(test_labels, folds, classes, errors, random)
        clean = np.ones(tests, bool)
        clean[index[(index >= 0) & (split >= 0)]] = False
        shown = np.arange(min(tests, 6))
        reading = random.dirichlet(np.ones(classes), (3, 6, 26)) if reads and tests else []
        check = {"probabilities": each.mean(axis=0), "each": each, "clean": clean}
        save_arrays(data / "check.npz", **check, shown=shown, reading=reading)

        self.write_metrics(folds, epochs, errors, labels, split, oof)
        test = evaluate(each.mean(axis=0)[clean], test_labels[clean], seconds=1.0) if tests else {"images": 0}
        write_json(self.folder / "metrics/check.json", test)
        if competition.test == "mnist":
            write_json(self.folder / "metrics/article.json", {**test, "images": 10_000})
            curve = {"step": [0, 500, 1000], "accuracy_batch": 0.9, "accuracy": 0.9}
            article = pd.DataFrame({**curve, "article_accuracy_batch": [0.1, None, 0.95]})
            write_csv(self.folder / "metrics/article.csv", article)
        return self

    def write_metrics(self, folds, epochs, errors, labels, split, oof):
        """Write the files of the stages `train`, `evaluate` and `ensemble` in `metrics/`."""
        epoch = {"loss": 0.4, "val_loss": 0.1, "val_accuracy": 1 - errors, "images": 1000, "seconds": 1.5}
        history = [
            {"member": f"fold {fold}, rows", "fold": fold, "architecture": "rows", "epoch": number, **epoch}
            for fold in range(folds)
            for number in range(1, epochs + 1)
        ]
        write_csv(self.folder / "metrics/history.csv", pd.DataFrame(history))
        parts = {f"folds/fold_{fold}": split == fold for fold in range(folds)}
        for name, rows in {**parts, "oof": split >= 0}.items():
            metrics = evaluate(oof[rows], labels[rows], epochs=epochs, seconds=45.0)
            write_json(self.folder / f"metrics/{name}.json", metrics)
        expected = {"accuracy": 0.99, "low": 0.985, "high": 0.995, "images": 28_000, "seconds": 1.0}
        write_json(self.folder / "metrics/ensemble.json", expected)

    def report(self):
        """Run the stage and return the page."""
        report.main()
        return (self.folder / "metrics/report.html").read_text()

    def json(self, name):
        return json.loads((self.folder / "metrics" / name).read_text())
