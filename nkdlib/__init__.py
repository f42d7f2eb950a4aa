"""Capture, distill, solve and recompose sub-networks, and check two papers with one command.

ND is *Neighbourhood Distillation* (arXiv 2010.01189), FiGS is *Fine-Grained Stochastic Architecture
Search* (arXiv 2006.09581).
"""

__version__ = "0.1.0"
