"""The contract of the passes, and the words they share.

`contract`: what a pass is asked, and what it returns.
`words`: what is found, what is planned.
"""

from mhc_compile.passes.base.contract import Namer, Pass, PassTime, Request, Results
from mhc_compile.passes.base.words import (
    Binding,
    Call,
    Exit,
    Findings,
    Known,
    Parameters,
    Place,
    PlacedSite,
    Plan,
    Rejection,
    Residual,
    SiteFacts,
    Spot,
    site_name,
)

__all__ = [
    "Binding",
    "Call",
    "Exit",
    "Findings",
    "Known",
    "Namer",
    "Parameters",
    "Pass",
    "PassTime",
    "Place",
    "PlacedSite",
    "Plan",
    "Rejection",
    "Request",
    "Residual",
    "Results",
    "SiteFacts",
    "Spot",
    "site_name",
]
