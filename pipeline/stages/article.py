"""Train the article's own system on MNIST and measure it as it goes: metrics/article.*."""

import sys
import time

import matplotlib
import pandas as pd

from pipeline.accuracy import wilson_interval
from pipeline.figures import draw_article
from pipeline.files import PipelineError, replacing, write_json
from pipeline.mnist import load_mnist
from pipeline.params import load_params
from pipeline.stages import ARTICLE, METRICS, MNIST, run_stage
from pipeline.training import best_precision

SHOWN = 100  # steps from one line on the terminal to the next


def main():
    # TensorFlow comes with them, and must come when its log is out of the way (see run_stage).
    from pipeline.article import AT_ONCE, PRINTED, beside_printed, measure, run
    from pipeline.ensemble import load_network, use_one_thread_an_operation

    use_one_thread_an_operation(AT_ONCE)
    settings, precision = load_params().article, best_precision()
    mnist = load_mnist(MNIST)
    images, labels = mnist["test_images"], mnist["test_labels"]
    print(f"article: {settings.steps} steps of {settings.batch_size} images, {precision}", flush=True)
    started = time.perf_counter()
    network, rows = run(mnist, **settings.model_dump(), precision=precision, progress=show)
    seconds = time.perf_counter() - started
    last = rows[-1]

    with replacing(ARTICLE) as beside:
        network.save(beside)
        restored = measure(load_network(beside), images, labels)
        trained = {name: last[name] for name in restored}
        if restored != trained:
            raise PipelineError(f"the network restored from the checkpoint is not the trained one: "
                                f"it gives {restored}, not {trained}")

    matplotlib.use("Agg")
    table = pd.DataFrame(rows)
    with replacing(METRICS / "article.csv") as beside:
        table.to_csv(beside, index=False, float_format="%.6g")
    with replacing(METRICS / "article.png") as beside:
        draw_article(beside, table, PRINTED)
    write_json(METRICS / "article.json", {
        **last,
        "interval_95": wilson_interval(round(last["accuracy"] * len(labels)), len(labels)),
        "images": len(labels),
        "restored_accuracy": restored["accuracy"],
        "precision": precision,
        "seconds": round(seconds, 1),
        **beside_printed(rows),
    })
    print(f"article: accuracy {last['accuracy']:.4f} on {len(labels):,} MNIST test images, "
          "restored from the checkpoint the same")


def show(row):
    if row["step"] % SHOWN == 0:
        print(f"article: step {row['step']}, cost {row['cost']:.6f}, accuracy "
              f"{row['accuracy_batch']:.3f} on the batch, {row['accuracy']:.4f} on all", flush=True)


if __name__ == "__main__":
    run_stage(sys.modules[__name__], main)
