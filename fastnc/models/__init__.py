"""The models of Table 1 of the paper, one small frozen dataclass each."""

from fastnc.models.ulpm import ULPM

__all__ = ["ULPM"]
