"""Get the competition's CSV files, from Kaggle or made of MNIST: data/raw."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from pipeline import kaggle_api
from pipeline.competition import ROWS, check_files, write_digits, write_labels
from pipeline.files import sha256, write_json
from pipeline.mnist import load_mnist, stand_in
from pipeline.params import load_params
from pipeline.paths import MNIST, RAW, SOURCE
from pipeline.stages import run_stage


def main():
    params = load_params().download
    source = params.source
    if source == "auto":
        credentials = kaggle_api.find_credentials()
        source = "kaggle" if credentials else "mnist"
        if credentials:
            print(f"download: from Kaggle, with the credentials of {credentials}")
        else:
            print("download: no Kaggle credentials found, so MNIST stands in for the competition "
                  "(real digits, same format and size; it cannot be submitted)")
    RAW.parent.mkdir(exist_ok=True)
    # All files are complete and checked before the first one appears.
    with tempfile.TemporaryDirectory(dir=RAW.parent, prefix=".download-") as folder:
        folder = Path(folder)
        if source == "kaggle":
            kaggle_api.download(params.competition, folder)
            check_files(folder)
        else:
            make_stand_in(folder, params.seed)
        write_json(folder / SOURCE.name, {
            "source": source,
            "competition": kaggle_api.slug(params.competition) if source == "kaggle" else None,
            "seed": params.seed if source == "mnist" else None,
            "sha256": {name: sha256(folder / name) for name in ROWS},
        })
        folder.chmod(0o755)
        if RAW.exists():
            shutil.rmtree(RAW)
        os.mkdir(RAW)
        for file in folder.iterdir():
            os.replace(file, RAW / file.name)
    print(f"download: {', '.join(ROWS)} from {source}")


def make_stand_in(folder, seed):
    arrays = load_mnist(MNIST)
    train, test = stand_in(arrays, seed, (ROWS["train.csv"], ROWS["test.csv"]))
    write_digits(folder / "train.csv", *train)
    write_digits(folder / "test.csv", test[0])
    ids = range(1, ROWS["test.csv"] + 1)
    write_labels(folder / "sample_submission.csv", ids, 0)


if __name__ == "__main__":
    run_stage(sys.modules[__name__], main, draws_on_stderr=True)
