"""A plugin for vLLM on CPUs: linear layers keep their weights, as on GPUs, and do not pack them into copies that cannot
be replaced."""

from typing import Any

from vllm.model_executor.layers.linear import UnquantizedLinearMethod


def keep_weights() -> None:
    """Make every linear layer one that vLLM does not pack."""
    of_vllm = UnquantizedLinearMethod.process_weights_after_loading

    def keep(self: Any, layer: Any) -> None:
        layer._cpu_skip_gemm_dispatch = True
        of_vllm(self, layer)

    UnquantizedLinearMethod.process_weights_after_loading = keep
