"""The contract of the passes, and the words they share.

`contract`: what a pass is asked, and what it returns.
`words`: what is found, what is planned.
`names`: how sites and their parts are called.
"""

from mhc_compile.passes.base.contract import Namer, Pass, PassTime, Request, Results
from mhc_compile.passes.base.names import first_step, is_by_line, site_name
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
    "first_step",
    "is_by_line",
    "site_name",
]
