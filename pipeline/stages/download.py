"""Get the competition's CSV files from Kaggle, from a folder, or from MNIST: data/raw."""

from pipeline.competition import check_files, copy_files, find_competition, write_digits, write_submission
from pipeline.files import PipelineError, atomic_folder, load_json, sha256, write_json
from pipeline.kaggle import api
from pipeline.mnist import load_mnist, own_split, stand_in
from pipeline.params import load_params
from pipeline.paths import MNIST, RAW, SOURCE
from pipeline.stages import run_stage


def main():
    params = load_params().download
    competition = find_competition(params.competition)
    source = choose_source(competition) if params.source == "auto" else params.source
    if source.startswith("mnist") and competition.test != "mnist":
        raise PipelineError(f"download.source is {source}, but MNIST cannot stand in for {competition.slug}")
    if names := files_of_user():
        raise PipelineError(
            f"{RAW}: contains files of yours, which the stage would replace: {', '.join(sorted(names))}; "
            "move them to another folder and set download.source: folder and download.folder in "
            "params.yaml, or delete them"
        )
    # The files appear together, after all have been checked.
    with atomic_folder(RAW) as folder:
        if source == "mnist":
            rows = competition.rows[0]
            write_competition(folder, competition, *stand_in(load_mnist(MNIST), params.seed, rows))
        elif source == "mnist-60k":
            write_competition(folder, competition, *own_split(load_mnist(MNIST)))
        elif source == "kaggle":
            api.download(competition, folder)
        else:
            copy_files(params.folder, folder, competition)
        try:
            check_files(folder, competition)
        except PipelineError as error:  # name the user's file, not the temporary copy
            place = params.folder if source == "folder" else source
            raise PipelineError(str(error).replace(str(folder), place)) from error
        digests = {name: sha256(folder / name) for name in competition.files}
        seed = params.seed if source == "mnist" else None
        origin = {"source": source, "competition": competition.slug, "seed": seed, "sha256": digests}
        write_json(folder / SOURCE.name, origin)
    print(f"download: {', '.join(competition.files)} from {source}")


def files_of_user():
    """Names in data/raw of files that this stage did not write, by the hashes that it recorded."""
    digests = load_json(SOURCE, "download").get("sha256", {}) if SOURCE.exists() else {}
    names = {path.name for path in RAW.glob("[!.]*")} - {SOURCE.name}
    return {name for name in names if name not in digests or sha256(RAW / name) != digests[name]}


def choose_source(competition):
    """Kaggle if there are credentials; malformed ones raise an error, because the user meant Kaggle."""
    if api.sign_in():
        return "kaggle"
    if competition.test != "mnist":
        raise PipelineError(
            f"no Kaggle credentials found; {competition.slug} needs them, or download.source: folder"
        )
    print("download: no Kaggle credentials found, so MNIST stands in (real digits, but not to be submitted)")
    return "mnist"


def write_competition(folder, competition, train, test):
    images, _ = test
    write_digits(folder / "train.csv", competition, *train)
    write_digits(folder / "test.csv", competition, images)
    write_submission(folder / "sample_submission.csv", competition, range(1, len(images) + 1), 0)


if __name__ == "__main__":
    run_stage(main, keep_stderr=True)
