"""THE list of what is touched of TRL, transformers, vLLM and others beyond their documented interface.

Open it when a version changes. tests/worker/test_patches.py looks each name up in the installed versions, and fails for
a private name that is used in grpo_lab/, hydra_plugins/ or tools/ and does not stand here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Touched:
    """Names of one library that are called, replaced or read in one place, for one reason."""

    place: str
    """Module, below the root of the repository."""
    versions: str
    """Versions that it was written against."""
    names: tuple[str, ...]
    """Importable paths; the last part may be an attribute that instances of a class have."""
    reason: str
    test: str
    """Test that fails when the touch has lost its effect or its reason, beside the one that looks the names up."""

    @property
    def library(self) -> str:
        return self.names[0].partition(".")[0]


def _of(owner: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{owner}.{name}" for name in names)


_SCORED = (
    *("_generate_and_score_completions", "_generate_single_turn", "_calculate_rewards"),
    *("_get_per_token_logps_and_entropies", "_generate", "_tokenize_prompts", "_metrics"),
)
_TRL, _VLLM = "TRL 1.16", "vLLM 0.22 to 0.31"
_CLIENT = "trl.generation.vllm_client.VLLMClient"
_TRL_PLACE, _VLLM_PLACE = "grpo_lab/worker/patches/trl.py", "grpo_lab/worker/patches/vllm.py"
_GLOO = "grpo_lab/server/gloo.py"

TOUCHED = (
    Touched(
        _TRL_PLACE,
        _TRL,
        (*_of("trl.GRPOTrainer", *_SCORED), *_of("trl.RLOOTrainer", *_SCORED)),
        "No hook around the phases of a step (profiling goes to trackers only), and no public way to generate from"
        " prompts with the trainer's settings, in every mode.",
        "tests/conductor/test_run.py::test_phases_add_up_to_the_step",
    ),
    Touched(
        _TRL_PLACE,
        _TRL,
        _of(
            "trl.experimental.online_dpo.OnlineDPOTrainer",
            *("_generate", "_forward", "_calculate_rewards_from_functions"),
        ),
        "The same of OnlineDPOTrainer.",
        "tests/worker/test_algorithms.py::test_another_trainer_runs_to_its_result",
    ),
    Touched(
        _TRL_PLACE,
        _TRL,
        _of("trl.GRPOTrainer", "_last_loaded_step"),
        "An evaluation between steps leaves the next step to bring its own weights to vLLM, or the step's time of"
        " synchronisation would be the evaluation's.",
        "tests/worker/test_eval_every.py::test_the_time_of_an_evaluation_is_no_part_of_the_next_step",
    ),
    Touched(
        "grpo_lab/worker/patches/passes.py",
        _TRL,
        _of(
            "trl.GRPOTrainer",
            *("_prepare_inputs", "_buffered_inputs", "_step", "_compute_loss", "_metrics"),
            *("_get_per_token_logps_and_entropies", "aux_loss_enabled"),
        ),
        "Every completion is padded to the longest of its generation batch, and passes mix lengths (trl issue 7179).",
        "tests/worker/test_passes.py::test_gradients_are_those_of_trl",
    ),
    Touched(
        _TRL_PLACE,
        _TRL,
        (
            "trl.experimental.async_grpo.AsyncGRPOTrainer._sync_weight",
            "trl.experimental.async_grpo.async_rollout_worker.AsyncRolloutWorker._loop_kwargs",
        ),
        "Weights of the last step are not yet with the server when it is evaluated (weight_sync_steps); rewards see a"
        " completion less its thinking block.",
        "tests/worker/test_async_grpo.py::test_it_trains",
    ),
    Touched(
        _TRL_PLACE,
        "transformers 5.10 to 5.17",
        _of("transformers.Trainer", "training_step", "_maybe_log_save_evaluate"),
        "No hook around the forward and backward passes or around logging; a NaN loss is logged as 0.",
        "tests/faults/test_numbers.py::test_a_nan_loss_ends_the_run",
    ),
    Touched(
        _TRL_PLACE,
        "transformers 5.10 to 5.17",
        _of("transformers.Trainer", "_save_checkpoint"),
        "A checkpoint is written without a look at the room on the disk, and older ones go before it is whole; a step"
        " that fails leaves none of what was trained.",
        "tests/faults/test_disk.py::test_no_room_for_a_checkpoint",
    ),
    Touched(
        _TRL_PLACE,
        "transformers 5.17",
        _of("transformers.Trainer", "_run_epoch", "_load_rng_state"),
        "A run that goes on from the checkpoint of its last step is trained one step more.",
        "tests/faults/test_kills.py::test_killed_without_vllm",
    ),
    Touched(
        _VLLM_PLACE,
        _TRL,
        (
            *_of("trl.generation.vllm_generation", "LLM", "VLLMClient"),
            *_of(_CLIENT, "check_server", "_post"),
        ),
        "vLLM is built with fixed arguments; its client has no option for a key or another way of weights, and takes"
        " completions for whole that the server has cut off.",
        "tests/faults/test_servers.py::test_after_training_has_begun",
    ),
    Touched(
        "grpo_lab/worker/patches/fast_output.py",
        f"{_TRL}, {_VLLM}",
        ("trl.generation.vllm_generation.extract_logprobs",),
        "vLLM makes texts of all tokens and log-probabilities, which TRL does not read (vllm.fast_output).",
        "tests/vllm/test_fast_output.py::test_ids_and_log_probabilities_are_identical_and_stop_strings_still_stop",
    ),
    Touched(
        "grpo_lab/worker/patches/fast_output.py",
        _VLLM,
        ("vllm.LLM.generate", "vllm.logprobs.FlatLogprobs"),
        "The same, in vLLM.",
        "tests/vllm/test_fast_output.py::test_ids_and_log_probabilities_are_identical_and_stop_strings_still_stop",
    ),
    Touched(
        "grpo_lab/worker/process.py",
        _TRL,
        ("trl.import_utils.is_vllm_available",),
        "TRL imports vLLM wherever it is installed, used or not, which doubles the start-up.",
        "tests/conductor/test_run.py::test_vllm_is_not_imported_for_nothing",
    ),
    Touched(
        _GLOO,
        _VLLM,
        ("vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm",),
        "On a CPU vLLM packs weights and drops the parameters that an update writes to. In the plugin, because it is"
        " needed in each of vLLM's processes.",
        "tests/vllm/test_weight_transfer.py::test_vllm_still_packs_cpu_weights",
    ),
    Touched(
        _GLOO,
        "vLLM 0.26 to 0.31",
        (
            "vllm.distributed.weight_transfer.factory.WeightTransferEngineFactory._registry",
            *_of("vllm.model_executor.model_loader.reload", "initialize_layerwise_reload", "finalize_layerwise_reload"),
        ),
        "A second registration of a weight-transfer backend raises, and none can be asked for by name.",
        "tests/vllm/test_weight_transfer.py::test_every_engine_has_the_new_weights",
    ),
    Touched(
        _GLOO,
        _TRL,
        _of(_CLIENT, "_post", "_updating_weights", "_start_weight_update", "_finish_weight_update"),
        "The client transfers weights through NCCL alone.",
        "tests/vllm/test_weight_transfer.py::test_every_engine_has_the_new_weights",
    ),
    Touched(
        _GLOO,
        "torch 2.11 to 2.13",
        (
            "torch.distributed.ProcessGroupGloo._Options",
            *_of("torch.distributed.ProcessGroupGloo._Options", "_devices", "_timeout"),
        ),
        "A group outside of torch's default one, on an interface of our choice.",
        "tests/vllm/test_weight_transfer.py::test_every_engine_has_the_new_weights",
    ),
    Touched(
        "grpo_lab/worker/soundness.py",
        "torch 2.9 to 2.13",
        ("torch._foreach_norm", "torch.distributed.tensor.DTensor._local_tensor"),
        "All weights are looked through before they are saved, in a few kernels, each rank its own part.",
        "tests/faults/test_numbers.py::test_weights_that_are_no_numbers_are_not_saved",
    ),
    Touched(
        "grpo_lab/config/upstream.py",
        _TRL,
        ("trl.trainer.base_config._BaseConfig",),
        "Names and types of options are read from the source, without importing it.",
        "tests/worker/test_algorithms.py::test_refused_with_the_reason",
    ),
    Touched(
        "grpo_lab/sweep/composer.py",
        "Hydra 1.3",
        _of(
            "hydra._internal.config_loader_impl", "ConfigLoaderImpl._apply_overrides_to_config", "get_overrides_dirname"
        ),
        "Composing each point from YAML takes 65 ms.",
        "tests/sweep/test_points.py::test_composed_as_by_hydra",
    ),
    Touched(
        "grpo_lab/sweep/job.py",
        "OmegaConf 2.3",
        ("omegaconf.basecontainer.BaseContainer._resolvers",),
        "Resolvers of a user's own have to be known where a point runs, in another process.",
        "tests/sweep/test_hydra_suites.py::TestLocalLauncherIntegration",
    ),
    Touched(
        "grpo_lab/sweep/job.py",
        "Hydra 1.3",
        ("hydra.core.utils.JobReturn._return_value",),
        "The public property raises the error of a failed point.",
        "tests/sweep/test_sweeps.py::test_fates",
    ),
    Touched(
        "grpo_lab/sweep/launchers/slurm.py",
        "submitit 1.5",
        ("submitit.SlurmExecutor._valid_parameters",),
        "A wrong option of Slurm is refused before anything is submitted.",
        "tests/sweep/launchers/test_slurm_without_slurm.py::test_parameters_that_are_refused",
    ),
    Touched(
        "hydra_plugins/grpo_lab_launchers.py",
        "Hydra 1.3",
        _of("hydra._internal.core_plugins.basic_sweeper", "BasicSweeper", "BasicSweeperConf"),
        "The grid sweeper, with the sweep's folder and points frozen before it.",
        "tests/sweep/test_hydra_suites.py::test_hydra_finds_the_launcher",
    ),
)
