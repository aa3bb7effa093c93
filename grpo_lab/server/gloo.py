"""Weights from the trainer into vLLM without NCCL: a weight-transfer backend `gloo`, both ends of it, as a vLLM plugin.

For servers on a CPU, and for GPU hosts whose NCCL cannot reach from the trainer to the server. vLLM calls `register` in
each of its processes (entry point group `vllm.general_plugins`), so importing this module must cost nothing: torch,
vLLM and TRL are imported where they are used. Written against vLLM 0.26 to 0.31 and TRL 1.16.
"""

# TRL and vLLM are not typed, and not installed everywhere; torch does not declare all that it exports.
# mypy: allow-untyped-calls, allow-subclassing-any, disable-error-code="attr-defined"

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from trl.generation.vllm_client import VLLMClient

BACKEND = "gloo"
TIMEOUT_S = 600.0  # for one tensor or one meeting; the conductor notices a dead server long before
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def register() -> None:
    """The plugin: make the backend known and, on a CPU, keep weights where an update can write to them."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.platforms import current_platform

    if BACKEND not in WeightTransferEngineFactory._registry:  # a second registration raises
        WeightTransferEngineFactory.register_engine(BACKEND, engine_class())
    if current_platform.is_cpu():
        keep_cpu_weights()


def keep_cpu_weights() -> None:
    """Make vLLM's CPU linear layers multiply by their own weight instead of by a packed copy of it.

    vLLM 0.22 to 0.31: `dispatch_cpu_unquantized_gemm` packs the weight for its GEMM and drops the parameter, so that
    TRL's colocated sync fails (`'Parameter' object has no attribute 'weight_loader'`) and a reload leaves a tied
    `lm_head` silently stale. The test `test_vllm_still_packs_cpu_weights` tells when this can go.
    """
    import torch
    from vllm.model_executor.layers import utils

    packing: Callable[..., None] = utils.dispatch_cpu_unquantized_gemm
    if hasattr(packing, "__wrapped__"):
        return

    @functools.wraps(packing)
    def dispatch(layer: Any, remove_weight: bool) -> None:
        if layer.weight.ndim == 2:
            layer.cpu_linear = torch.nn.functional.linear
        else:  # convolutions and stacked experts are no linear layers
            packing(layer, remove_weight)

    utils.dispatch_cpu_unquantized_gemm = dispatch


class Wire:
    """A gloo group in which rank 0, the trainer, sends and all others receive the same bytes.

    Raises RuntimeError when the other side breaks the connection, TimeoutError when it does not come.
    """

    def __init__(self, address: str, port: int, *, rank: int, size: int, timeout_s: float) -> None:
        from torch.distributed import TCPStore

        timeout = timedelta(seconds=timeout_s)
        self.rank, self.size, self.timeout_s = rank, size, timeout_s
        self._store: Any = TCPStore(address, port, size, rank == 0, timeout, wait_for_workers=False)
        self._loopback = address in LOOPBACK

    def announce(self, meeting: str) -> None:
        """A receiver: I am about to take part in what is called `meeting`."""
        self._store.set(f"{meeting}/{self.rank}", "here")

    def await_receivers(self, meeting: str, request: Future[Any]) -> None:
        """The sender: wait until all receivers are there, or until the request that sends them there has failed."""
        keys = [f"{meeting}/{rank}" for rank in range(1, self.size)]
        deadline = time.monotonic() + self.timeout_s
        while not self._store.check(keys):
            if request.done():
                raise RuntimeError(f"the server did not take part in the weight transfer: {request.result()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not all {len(keys)} vLLM workers came to '{meeting}' in {self.timeout_s:g} s")
            time.sleep(0.002)

    def connect(self) -> None:
        """Open the group; all ranks must be on their way here."""
        from torch.distributed import PrefixStore, ProcessGroupGloo

        options = ProcessGroupGloo._Options()
        # Without a name gloo takes the interface that the host's own name resolves to, which need not be reachable.
        device = ProcessGroupGloo.create_device(hostname="127.0.0.1") if self._loopback else None
        options._devices = [device or ProcessGroupGloo.create_default_device()]
        options._timeout = timedelta(seconds=self.timeout_s)
        self._group: Any = ProcessGroupGloo(PrefixStore("gloo", self._store), self.rank, self.size, options)

    def send(self, tensor: torch.Tensor) -> None:
        import torch

        data = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        self._broadcast(data)

    def receive(self, dtype: torch.dtype, shape: Iterable[int]) -> torch.Tensor:
        """The next tensor, on the CPU."""
        import torch

        tensor = torch.empty(tuple(shape), dtype=dtype)
        self._broadcast(tensor.reshape(-1).view(torch.uint8))
        return tensor

    def _broadcast(self, data: torch.Tensor) -> None:
        from torch.distributed import BroadcastOptions

        if data.numel() == 0:
            return
        options = BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        self._group.broadcast([data], options).wait()

    def close(self) -> None:
        """Receivers that wait for a tensor get an error."""
        self._group = self._store = None


def engine_class() -> type:
    """The receiving end, in each vLLM worker. A function, because its base class is vLLM's."""
    import torch
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )

    @dataclass
    class GlooInitInfo(WeightTransferInitInfo):
        master_address: str
        master_port: int
        rank_offset: int
        world_size: int
        timeout_s: float

    @dataclass
    class GlooUpdateInfo(WeightTransferUpdateInfo):
        meeting: str
        names: list[str]
        dtype_names: list[str]
        shapes: list[list[int]]

    class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
        init_info_cls = GlooInitInfo
        update_info_cls = GlooUpdateInfo
        supports_draft_weight_update = False
        model: Any
        _wire: Wire | None = None

        def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
            parallel = self.parallel_config
            worker = parallel.data_parallel_index * parallel.world_size + parallel.rank
            self._wire = Wire(
                init_info.master_address,
                init_info.master_port,
                rank=worker + init_info.rank_offset,
                size=init_info.world_size,
                timeout_s=init_info.timeout_s,
            )
            self._wire.announce("connect")
            self._wire.connect()

        def start_weight_update(self) -> None:
            from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

            initialize_layerwise_reload(self.model)

        def finish_weight_update(self) -> None:
            from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

            finalize_layerwise_reload(self.model, self.model_config)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            self.receive_weights(self.parse_update_info(update_info))
            if self.device.type != "cpu":  # vLLM's own version of this method synchronizes, which a CPU refuses
                torch.accelerator.synchronize()

        def receive_weights(self, update_info: GlooUpdateInfo) -> None:
            assert self._wire is not None
            self._wire.announce(update_info.meeting)
            incoming = self._incoming(update_info)
            try:
                for name, weight in incoming:
                    self.model.load_weights([(name, weight)])
            finally:  # the trainer sends all of them, whatever happened here
                for _ in incoming:
                    continue

        def _incoming(self, update: GlooUpdateInfo) -> Iterator[tuple[str, torch.Tensor]]:
            assert self._wire is not None
            for name, dtype, shape in zip(update.names, update.dtype_names, update.shapes, strict=True):
                yield name, self._wire.receive(getattr(torch, dtype), shape).to(self.device)

        def shutdown(self) -> None:
            if self._wire is not None:
                self._wire.close()

        @staticmethod
        def trainer_send_weights(iterator: Any, trainer_args: Any) -> None:
            """Abstract in vLLM before 0.28, where the trainer's end was looked for here."""
            raise NotImplementedError("weights are sent by grpo_lab.server.gloo.gloo_client")

    return GlooWeightTransferEngine


def gloo_client(address: str | None = None, timeout_s: float = TIMEOUT_S) -> type[VLLMClient]:
    """The sending end: TRL's client, with gloo in place of NCCL.

    `address` is where the workers find the trainer; unless given, the loopback for a server there, else this host's
    address as vLLM sees it (VLLM_HOST_IP sets it). The port is TRL's `vllm_group_port`.
    """
    from requests.adapters import HTTPAdapter
    from trl.generation.vllm_client import VLLMClient

    class GlooClient(VLLMClient):
        communicator: Any

        def init_communicator(self, device: torch.device | str | int = 0) -> None:
            """Meet the server's workers. `device` is TRL's; tensors may be anywhere."""
            self._refuse_other_backends()
            # TRL's session repeats a POST that failed; nobody would send the tensors a second time.
            for path in ("init_weight_transfer_engine", "update_weights"):
                self.session.mount(f"{self.base_url}/{path}", HTTPAdapter(max_retries=0))
            size = self.get_world_size() + 1
            host = address or ("127.0.0.1" if self.host in LOOPBACK else own_address())
            wire = Wire(host, self.group_port, rank=0, size=size, timeout_s=timeout_s)
            init_info = {
                "master_address": host,
                "master_port": self.group_port,
                "rank_offset": 1,
                "world_size": size,
                "timeout_s": timeout_s,
            }
            self.communicator, self._updates = wire, 0
            with self._request("init_weight_transfer_engine", init_info=init_info) as request:
                wire.await_receivers("connect", request)
                wire.connect()

        def update_named_params(
            self,
            metadata: list[tuple[str, str, list[int]]],
            named_params: Iterator[tuple[str, torch.Tensor]],
        ) -> None:
            names, dtype_names, shapes = (list(column) for column in zip(*metadata, strict=True))
            self._updates += 1
            meeting = f"update-{self._updates}"
            update = {"meeting": meeting, "names": names, "dtype_names": dtype_names, "shapes": shapes}
            if not self._updating_weights:
                self._start_weight_update()
            with self._request("update_weights", update_info=update) as request:
                self.communicator.await_receivers(meeting, request)
                for (expected, _, shape), (name, tensor) in zip(metadata, named_params, strict=True):
                    assert (name, list(tensor.shape)) == (expected, list(shape))
                    self.communicator.send(tensor)
            if not self._updating_weights:
                self._finish_weight_update()

        def close_communicator(self) -> None:
            if self.communicator is not None:
                self.communicator.close()
                self.communicator = None

        @contextmanager
        def _request(self, path: str, **body: Any) -> Iterator[Future[Any]]:
            """POST beside the block; its failure is raised at the end of the block.

            If the block fails the wire is closed: the workers would wait for tensors, and we for their answer.
            """
            with ThreadPoolExecutor(max_workers=1) as executor, ExitStack() as on_failure:
                on_failure.callback(self.close_communicator)
                request = executor.submit(self._post, f"{self.base_url}/{path}", json=body)
                yield request
                request.result()
                on_failure.pop_all()

        def _refuse_other_backends(self) -> None:
            config = self.get_server_info()["weight_transfer_config"]
            if not config or config["backend"] != BACKEND:
                raise RuntimeError(
                    f"the vLLM server at {self.base_url} has the weight-transfer config {config}; "
                    f"""start it with --weight-transfer-config '{{"backend": "{BACKEND}"}}'"""
                )

    return GlooClient


def own_address() -> str:
    from vllm.utils.network_utils import get_ip

    address: str = get_ip()
    return address
