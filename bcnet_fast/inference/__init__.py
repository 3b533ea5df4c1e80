"""From a checkpoint and an archive of features to proposals in seconds."""

from .model import Model, load
from .predict import Failure, VideoProposals, predict

__all__ = ["Failure", "Model", "VideoProposals", "load", "predict"]
