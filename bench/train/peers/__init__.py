"""Other libraries' hyper-connections, one small adapter each: a function that widens a Llama in place."""

from __future__ import annotations

from bench.train.peers import deepseek, lucidrains, pypi
from bench.train.peers.layer import Peer

PEERS: dict[str, Peer] = {
    "hyper-connections/mHCv2": lucidrains.V2,
    "hyper-connections/mHC": lucidrains.V1,
    "transformers/DeepSeek-V4": deepseek.PEER,
    "mhc-pytorch": pypi.MHC_PYTORCH,
    "mhc (PyPI)": pypi.MHC,
}
