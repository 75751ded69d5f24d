"""mhc_compile: torch.compile(model, backend="mhc") turns residual connections into hyper-connections (mHC)."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

if not (Path(__file__).parent / "passes").is_dir():  # a checkout without links holds a text file there
    raise ImportError(
        "mhc_compile/passes must be a link to ../passes, but this checkout has none; clone again with"
        " `git clone -c core.symlinks=true` (on Windows with developer mode on), or install the wheel"
    )

from mhc_compile.api.adapters import load_adapter, save_adapter
from mhc_compile.api.explain import explain
from mhc_compile.api.export import export, rewrite
from mhc_compile.api.gains import gains
from mhc_compile.api.gains.result import Gains
from mhc_compile.api.lifecycle import plain, remove, reset_parameters, restore
from mhc_compile.api.monitor import Monitor
from mhc_compile.api.report import Report
from mhc_compile.api.upgrade import upgrade
from mhc_compile.config import Config
from mhc_compile.distributed.sending import send_early
from mhc_compile.distributed.sharding import shard_sites
from mhc_compile.distributed.stages import connect_stages
from mhc_compile.distributed.tokens import sum_gradients
from mhc_compile.errors import MHCError, MHCWarning
from mhc_compile.integrations.pretrained import from_pretrained
from mhc_compile.model.optimizers import named_parameters, param_groups
from mhc_compile.passes import Rejection
from mhc_compile.plan.model_plan import SitePlan as Site

try:
    __version__ = version("mhc_compile")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "Config",
    "Gains",
    "MHCError",
    "MHCWarning",
    "Monitor",
    "Rejection",
    "Report",
    "Site",
    "__version__",
    "connect_stages",
    "explain",
    "export",
    "from_pretrained",
    "gains",
    "load_adapter",
    "named_parameters",
    "param_groups",
    "plain",
    "remove",
    "reset_parameters",
    "restore",
    "rewrite",
    "save_adapter",
    "send_early",
    "shard_sites",
    "sum_gradients",
    "upgrade",
]
