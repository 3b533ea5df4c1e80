"""From a network's scores to ranked proposals."""

from .suppression import ProposalGenerator, WindowProposals

__all__ = ["ProposalGenerator", "WindowProposals"]
