"""Get the competition's CSV files, from Kaggle or made from MNIST: data/raw."""

from pipeline.competition import ROWS, check_files, check_replaceable, copy_files, write_digits, write_labels
from pipeline.files import atomic_folder, sha256, write_json
from pipeline.kaggle import client
from pipeline.kaggle.credentials import find_credentials
from pipeline.mnist import load_mnist, own_split, stand_in
from pipeline.params import load_params
from pipeline.paths import MNIST, RAW, SOURCE
from pipeline.stages import run_stage


def main():
    params = load_params().download
    source = choose_source() if params.source == "auto" else params.source
    origin = {"source": source, "competition": None, "seed": None}
    # All files are complete and checked before the first one appears.
    with atomic_folder(RAW) as folder:
        if source == "mnist":
            origin["seed"] = params.seed
            rows = ROWS["train.csv"], ROWS["test.csv"]
            write_competition(folder, *stand_in(load_mnist(MNIST), params.seed, rows))
        elif source == "mnist-60k":
            write_competition(folder, *own_split(load_mnist(MNIST)))
        else:
            origin["competition"] = client.slug(params.competition)
            if source == "kaggle":
                client.download(params.competition, folder)
            else:
                copy_files(params.folder, folder, f"{origin['competition']}.zip")
            check_files(folder)
        origin["sha256"] = {name: sha256(folder / name) for name in ROWS}
        check_replaceable(RAW, origin["sha256"])
        write_json(folder / SOURCE.name, origin)
    print(f"download: {', '.join(ROWS)} from {source}")


def choose_source():
    """Choose Kaggle if there are credentials; damaged ones are an error, for they mean Kaggle too."""
    if credentials := find_credentials():
        print(f"download: from Kaggle, with the credentials of {credentials.where}")
        return "kaggle"
    print("download: no Kaggle credentials found, so MNIST stands in (real digits, but not to be submitted)")
    return "mnist"


def write_competition(folder, train, test):
    images, _ = test
    write_digits(folder / "train.csv", *train)
    write_digits(folder / "test.csv", images)
    write_labels(folder / "sample_submission.csv", range(1, len(images) + 1), 0, len(images))


if __name__ == "__main__":
    run_stage(main, keep_stderr=True)
