"""Gate: the gradient of a switch on each unit, from activations alone.

With h the input of `down` (or `o`) and g = ∂L/∂h, Σ_t h_c·g_c is exactly Σ_i (∂L/∂W ⊙ W)_ic over column c: the
first-order effect of removing the unit, without ∂L/∂W. Squared and summed over sequences it is the Fisher
information of the switch; over pieces of sequences, that of a switch for each piece, of which a step sees several times
as many. Source: Molchanov et al. 2019 (arXiv:1906.10771); Kwon et al. 2022 (arXiv:2204.09656); over pieces: ours.
"""

from torch import Tensor

from ..architecture.units import Pool
from ..config.pruning import ScoringOptions
from .base import CRITERIA, Criterion, Evidence


def gate(pool: Pool, evidence: Evidence, scoring: ScoringOptions) -> Tensor:
    """Mean over sequences of Σ (Σ_t h·∂L/∂h)² (`abs`: |·|) over pieces of them, at the input of o and down."""
    return evidence.gates[pool.name]


CRITERIA.register(
    "gate",
    Criterion(
        gate,
        "Σ over pieces of sequences of (Σ h·∂L/∂h)² at the input of o and down",
        needs=frozenset({"gate_grad"}),
        across_layers="raw",
    ),
)
