"""From a checkpoint and an archive of features to proposals in seconds."""

from .model import Model, load
from .predict import Failure, Predictor, VideoProposals, predict

__all__ = ["Failure", "Model", "Predictor", "VideoProposals", "load", "predict"]
