"""Mock of a finished run: the input files of the stage `report`."""

import numpy as np
import pandas as pd
from helpers import small_params
from ruamel.yaml import YAML

from pipeline.competition import COMPETITIONS
from pipeline.files import load_json, save_arrays, write_csv, write_json
from pipeline.folds import make_folds
from pipeline.metrics import evaluate
from pipeline.stages import report


def predict(labels, networks, classes, errors, random):
    """Probabilities `(networks, n, classes)`; on the share `errors` of images, most networks are wrong."""
    shape = networks, len(labels)
    wrong = (random.random(len(labels)) < errors) & (random.random(shape) < 0.9)
    answers = np.where(wrong, random.integers(0, classes, len(labels)), labels)
    noise = random.dirichlet(np.full(classes, 0.02), shape)
    return (0.3 * noise + 0.7 * np.eye(classes)[answers]).astype("float32")


class Finished:
    """A folder with the files of a finished run."""

    def __init__(self, folder, mnist):
        self.folder, self.mnist = folder, mnist
        (folder / "data").mkdir()

    def write(
        self, folds=5, epochs=30, rows=1500, errors=0.03, held_out=True, slug="digit-recognizer", tests=10_000
    ):
        """Write all files; `held_out` says whether test images among the rows were held out."""
        random, competition = np.random.default_rng(0), COMPETITIONS[slug]
        size, classes, data = competition.size, competition.classes, self.folder / "data"
        params = small_params(prepare={"folds": folds}, download={"competition": slug})
        YAML(typ="safe").dump(params.model_dump(), self.folder / "params.yaml")
        write_json(data / "raw/source.json", {"source": "mnist", "competition": slug, "seed": 1})

        in_test = (np.arange(rows) % 7 == 0) & (competition.test == "mnist")
        images, labels = self.mnist["train_images"][:rows, :size, :size], self.mnist["train_labels"][:rows]
        split, index = (
            make_folds(labels, folds, 0, in_test & held_out),
            np.where(in_test, np.arange(rows), -1),
        )
        save_arrays(data / "digits.npz", images=images, labels=labels, folds=split, test_index=index)
        oof = np.where(split[:, None] >= 0, predict(labels, 1, classes, errors, random)[0], np.nan)
        save_arrays(data / "oof.npz", probabilities=oof, labels=labels, folds=split)
        fold, epoch = np.repeat(range(folds), epochs), np.tile(range(1, epochs + 1), folds)
        history = {"fold": fold, "epoch": epoch, "member": [f"fold {n}, rows" for n in fold]}
        history |= {"architecture": "rows", "loss": 0.4, "val_loss": 0.1, "val_accuracy": 1 - errors}
        history = pd.DataFrame({**history, "images": 1000, "seconds": 1.5})
        write_csv(self.folder / "metrics/history.csv", history)
        parts = {f"folds/fold_{fold}": split == fold for fold in range(folds)} | {"oof": split >= 0}
        for name, part in parts.items():
            self.write_metrics(name, evaluate(oof[part], labels[part], epochs=epochs, seconds=45.0))
        self.write_metrics("ensemble", {"accuracy": 0.99, "low": 0.985, "high": 0.995, "images": 28_000})

        tests = tests if competition.test else 0
        images, labels = self.mnist["test_images"][:tests], self.mnist["test_labels"][:tests]
        save_arrays(data / "clean.npz", images=images, labels=labels)
        each, clean = predict(labels, folds, classes, errors, random), np.ones(tests, bool)
        clean[index[(index >= 0) & (split >= 0)]] = False
        save_arrays(data / "check.npz", probabilities=each.mean(axis=0), each=each, clean=clean)
        metrics = evaluate(each.mean(axis=0)[clean], labels[clean]) if tests else {"images": 0}
        self.write_metrics("check", metrics)
        self.write_metrics("article", metrics)
        curve = {"step": [0, 500, 1000], "accuracy_batch": 0.9, "accuracy": 0.9}
        article = pd.DataFrame({**curve, "article_accuracy_batch": [0.1, None, 0.95]})
        write_csv(self.folder / "metrics/article.csv", article)
        return self

    def write_metrics(self, name, content):
        write_json(self.folder / f"metrics/{name}.json", content)

    def metrics(self, name):
        return load_json(self.folder / f"metrics/{name}.json", "report")

    def report(self):
        """Run the stage and return the page."""
        report.main()
        return (self.folder / "metrics/report.html").read_text()
