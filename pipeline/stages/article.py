"""Train the article's system on MNIST and evaluate it during the training: metrics/article.*."""

import time

from scipy.stats import binomtest

from pipeline.files import save_network, write_csv, write_json
from pipeline.machine import best_precision
from pipeline.mnist import load_mnist
from pipeline.params import load_params
from pipeline.paths import ARTICLE, METRICS, MNIST
from pipeline.stages import run_stage


def main():
    import keras

    from pipeline.article import AT_ONCE, beside_printed, run
    from pipeline.prediction import use_one_thread_per_operation

    use_one_thread_per_operation(AT_ONCE)
    params, precision, mnist = load_params().article, best_precision(), load_mnist(MNIST)
    print(f"article: {params.steps} steps of {params.batch_size} images, {precision}", flush=True)
    keras.utils.set_random_seed(params.seed)
    started = time.perf_counter()
    network, rows = run(mnist, params, precision)
    seconds, last = time.perf_counter() - started, rows[-1]

    save_network(network, ARTICLE)
    write_csv(METRICS / "article.csv", beside_printed(rows))
    images, accuracy = len(mnist["test_labels"]), last["accuracy"]
    # Without `pipeline.metrics`, so that a new metric does not train this network again.
    low, high = binomtest(round(accuracy * images), images).proportion_ci(0.95, method="wilson")
    figures = {"accuracy": accuracy, "low": low, "high": high, "log_loss": last["log_loss"], "images": images}
    write_json(METRICS / "article.json", {**figures, "seconds": round(seconds, 1)})
    print(f"article: accuracy {accuracy:.4f} on {images:,} MNIST test images")


if __name__ == "__main__":
    run_stage(main)
