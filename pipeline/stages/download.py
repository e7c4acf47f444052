"""Get the competition's CSV files, from Kaggle or made from MNIST: data/raw."""

import shutil
import sys
import tempfile
from pathlib import Path

from pipeline.competition import ROWS, check_files, write_digits, write_labels
from pipeline.files import sha256, write_json
from pipeline.kaggle import client
from pipeline.kaggle.credentials import find_credentials
from pipeline.mnist import load_mnist, stand_in
from pipeline.params import load_params
from pipeline.paths import MNIST, RAW, SOURCE
from pipeline.stages import run_stage


def main():
    params = load_params().download
    source = choose_source() if params.source == "auto" else params.source
    origin = {"source": source, "competition": None, "seed": None}
    RAW.parent.mkdir(exist_ok=True)
    # All files are complete and checked before the first one appears.
    with tempfile.TemporaryDirectory(dir=RAW.parent, prefix=".download-") as folder:
        folder = Path(folder)
        if source == "kaggle":
            origin["competition"] = client.slug(params.competition)
            client.download(params.competition, folder)
            check_files(folder)
        else:
            origin["seed"] = params.seed
            make_stand_in(folder, params.seed)
        origin["sha256"] = {name: sha256(folder / name) for name in ROWS}
        write_json(folder / SOURCE.name, origin)
        if RAW.exists():
            shutil.rmtree(RAW)
        RAW.mkdir()
        for file in folder.iterdir():
            file.replace(RAW / file.name)
    print(f"download: {', '.join(ROWS)} from {source}")


def choose_source():
    """Choose Kaggle if there are credentials; damaged ones are an error, for they mean Kaggle too."""
    if credentials := find_credentials():
        print(f"download: from Kaggle, with the credentials of {credentials.where}")
        return "kaggle"
    print("download: no Kaggle credentials found, so MNIST stands in (real digits, but not to be submitted)")
    return "mnist"


def make_stand_in(folder, seed):
    train, (images, _) = stand_in(load_mnist(MNIST), seed, (ROWS["train.csv"], ROWS["test.csv"]))
    write_digits(folder / "train.csv", *train)
    write_digits(folder / "test.csv", images)
    write_labels(folder / "sample_submission.csv", range(1, len(images) + 1), 0)


if __name__ == "__main__":
    run_stage(sys.modules[__name__], main, draws_on_stderr=True)
