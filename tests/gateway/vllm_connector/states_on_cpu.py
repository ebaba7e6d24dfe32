"""vLLM's connector for hidden states, with a plain copy where it uses CUDA's streams; vLLM imports it."""

from __future__ import annotations

import os
from typing import Any

import torch
from safetensors.torch import save_file
from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import (
    ExampleHiddenStatesConnector,
    extract_from_kv_cache,
)


class StatesOnCpu(ExampleHiddenStatesConnector):
    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._ended: set[str] = set()
        self._done: set[str] = set()

    def _submit_async_write(self, pending: Any) -> None:
        first_N1 = torch.tensor(pending.block_ids)[:, None] * self._block_size
        slots = (first_N1 + torch.arange(self._block_size)).flatten()
        states_TLD = extract_from_kv_cache(self._kv_cache, slots, len(pending.token_ids))
        tensors = {"hidden_states": states_TLD.clone(), "token_ids": pending.token_ids}
        save_file(tensors, pending.filename)
        os.close(self._lock_fds.pop(pending.req_id))
        self._done.add(pending.req_id)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        super().get_finished(set())  # which writes
        self._ended |= finished_req_ids
        told = self._ended & self._done
        self._ended -= told
        self._done -= told
        return told or None, None
