"""A network on images, past zero training error: section 4 of the paper, "Realistic Training"."""

from fastnc.training.data import Dataset, fashion_mnist, load_data
from fastnc.training.experiment import Experiment
from fastnc.training.loop import train

__all__ = ["Dataset", "Experiment", "fashion_mnist", "load_data", "train"]
