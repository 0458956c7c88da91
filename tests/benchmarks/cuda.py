"""That no layer waits for a CUDA device, by CUDA's own detector; needs one."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks import tools
from benchmarks.workloads import tanh_chain


def check() -> None:
    """Raises where a layer waits, or was not measured."""
    work = tanh_chain(width=64, depth=6, batch=64)
    work.model.cuda()
    work = replace(work, x=work.x.cuda(), target=work.target.cuda())
    work.step()  # what CUDA's libraries set up at their first use
    torch.cuda.set_sync_debug_mode("error")
    try:
        recorder = tools.record(work)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    layers = recorder.layers()

    assert not recorder.not_observed
    assert [layer.unseen for layer in layers] == [()] * 13
