"""Training on more than one device, through torch.distributed alone."""

from pi05_training.parallel.branches import BranchError
from pi05_training.parallel.checkpointing import checkpoint_layers
from pi05_training.parallel.gather import assemble, full_state
from pi05_training.parallel.memory import MemoryPlan, plan_memory, plan_model, plan_table
from pi05_training.parallel.process import Kind, Parallel, ParallelError
from pi05_training.parallel.sharding import local, named_parameters, unwrap

__all__ = [
    "BranchError",
    "Kind",
    "MemoryPlan",
    "Parallel",
    "ParallelError",
    "assemble",
    "checkpoint_layers",
    "full_state",
    "local",
    "named_parameters",
    "plan_memory",
    "plan_model",
    "plan_table",
    "unwrap",
]
