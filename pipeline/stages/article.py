"""Train the article's own system on MNIST and measure it as it goes: metrics/article.*."""

import sys
import time

import pandas as pd

from pipeline.files import PipelineError, atomic_write, save_network, write_json
from pipeline.machine import best_precision
from pipeline.metrics import wilson_interval
from pipeline.mnist import load_mnist
from pipeline.params import load_params
from pipeline.paths import ARTICLE, METRICS, MNIST
from pipeline.report.plots import draw_article
from pipeline.stages import run_stage


def main():
    # Imports TensorFlow, which must not come before its log is out of the way (see run_stage).
    import keras

    from pipeline.article import AT_ONCE, PRINTED, beside_printed, measure, run, tell
    from pipeline.networks import load_network, use_one_thread_per_operation

    use_one_thread_per_operation(AT_ONCE)
    params, precision, mnist = load_params().article, best_precision(), load_mnist(MNIST)
    print(f"article: {params.steps} steps of {params.batch_size} images, {precision}", flush=True)
    keras.utils.set_random_seed(params.seed)
    started = time.perf_counter()
    network, rows = run(mnist, params, precision, progress=tell)
    seconds, last = time.perf_counter() - started, rows[-1]

    with atomic_write(ARTICLE) as tmp:
        save_network(network, tmp)
        restored = {"step": last["step"], **measure(load_network(tmp), mnist)}
        if restored != last:
            raise PipelineError(
                f"the network restored from the checkpoint gives {restored}, the trained one gave {last}"
            )
    table = pd.DataFrame(rows)
    with atomic_write(METRICS / "article.csv") as tmp:
        table.to_csv(tmp, index=False, float_format="%.6g")
    with atomic_write(METRICS / "article.png") as tmp:
        draw_article(tmp, table, PRINTED)
    images = len(mnist["test_labels"])
    result = {
        **last,
        "interval_95": wilson_interval(round(last["accuracy"] * images), images),
        "images": images,
        "restored_accuracy": restored["accuracy"],
        "precision": precision,
        "seconds": round(seconds, 1),
        **beside_printed(rows),
    }
    write_json(METRICS / "article.json", result)
    print(f"article: accuracy {last['accuracy']:.4f} on {images:,} MNIST test images, restored the same")


if __name__ == "__main__":
    run_stage(sys.modules[__name__], main)
