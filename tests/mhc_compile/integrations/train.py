"""Train a tiny upgraded model with MHCTrainer: python train.py FOLDER whole|kill|resume OPTIONS.

Prints losses of training and evaluation, and a hash of the weights; "kill" ends the process in the middle.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments

import mhc_compile as mhc
from mhc_compile.integrations import MHCTrainer

STEPS, KILLED_AT = 6, 5


class Kill(TrainerCallback):  # type: ignore[misc]  # of a library without types
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == KILLED_AT:
            os._exit(7)


def built() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2))
    ids = torch.arange(16).reshape(2, 8)
    mhc.upgrade(model, (), {"input_ids": ids, "labels": ids}, config=mhc.Config(compiler="eager"))
    return model


def main(folder: str, what: str, options: str) -> None:
    ids = torch.randint(32, (48, 8), generator=torch.Generator().manual_seed(1))
    data: Any = [{"input_ids": row, "labels": row} for row in ids]
    args = TrainingArguments(
        folder, max_steps=STEPS, save_steps=3, eval_steps=3, eval_strategy="steps", logging_steps=1, learning_rate=3e-3,
        weight_decay=0.1, report_to=[], disable_tqdm=True, use_cpu=True, per_device_train_batch_size=4,
        **json.loads(options),
    )  # fmt: skip
    model = built()
    callbacks = [Kill()] if what == "kill" else []
    trainer = MHCTrainer(model, args, train_dataset=data, eval_dataset=data[:6], callbacks=callbacks, mhc_lr=3e-2)
    trainer.train(resume_from_checkpoint=what == "resume")
    history = [
        {key: entry[key] for key in ("step", "loss", "eval_loss") if key in entry}
        for entry in trainer.state.log_history
    ]
    state = b"".join(value.float().numpy().tobytes() for value in model.state_dict().values())
    print(json.dumps({
        "losses": [entry for entry in history if "loss" in entry],
        "evaluation": [entry for entry in history if "eval_loss" in entry],
        "weights": hashlib.sha256(state).hexdigest(),
    }))  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
