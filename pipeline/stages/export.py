"""Write the ensemble as a model of Keras's own layers, which loads without this project (`make export`)."""

from pipeline.files import save_network
from pipeline.paths import ENSEMBLE, EXPORT
from pipeline.stages import run_stage


def main():
    from pipeline.architectures import to_stock
    from pipeline.prediction import load_network

    save_network(to_stock(load_network(ENSEMBLE)), EXPORT)
    print(f'export: keras.models.load_model("{EXPORT}") needs Keras and TensorFlow alone')


if __name__ == "__main__":
    run_stage(main)
