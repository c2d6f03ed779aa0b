"""The gate in front of a server: what it lets in, what it refuses, whose turn it is.

Pure decisions: what happens and the time go in, what is to be done comes out. The server acts.
"""

from rabble.services.gate.admission_queue import AdmissionQueue, Admitted, Refused
from rabble.services.gate.canary_gate import CanaryGate
from rabble.services.gate.fair_queue import FairQueue
from rabble.services.gate.gate import NEVER, Gate, NoGate
from rabble.services.gate.gradient_gate import GradientGate
from rabble.services.gate.messages import GateChanged, GateStatus
from rabble.services.gate.policies import CanaryPolicy, GradientPolicy

__all__ = [
    "NEVER",
    "AdmissionQueue",
    "Admitted",
    "CanaryGate",
    "CanaryPolicy",
    "FairQueue",
    "Gate",
    "GateChanged",
    "GateStatus",
    "GradientGate",
    "GradientPolicy",
    "NoGate",
    "Refused",
]
