//! Training in many processes, on one machine or several, under torch's own launcher.
//!
//! `torchrun --nproc-per-node 2 --no-python PROGRAM` starts a program as often as asked and tells each process its
//! place by environment variables; so do other launchers (Kubernetes, SLURM with a line of shell).
//! [`ProcessGroup::from_env`] reads them, and connects the processes by libtorch's c10d and Gloo, as
//! `torch.distributed.init_process_group` does.
//! [`Optimizer::set_process_group`](crate::Optimizer::set_process_group) then makes the gradient of all of them that of
//! each, with one all-reduce per update.
//!
//! | torch.distributed | here |
//! |---|---|
//! | `init_process_group`, `init_device_mesh` | [`ProcessGroup::from_env`] |
//! | `is_torchelastic_launched` | [`ProcessGroup::is_launched`] |
//! | `get_rank`, `get_world_size`, `get_node_local_rank` | [`rank`](ProcessGroup::rank), [`world_size`](ProcessGroup::world_size), [`local_rank`](ProcessGroup::local_rank) |
//! | `all_reduce`, `broadcast`, `all_gather`, `barrier` | the same |
//! | `DistributedDataParallel(model)` | [`Optimizer::set_process_group`](crate::Optimizer::set_process_group) |
//! | `no_sync` | not needed: an update reduces once, whatever it accumulates |
//!
//! Nothing here waits for ever: what takes longer than the [timeout](ProcessGroup::from_env_with) is an error, and
//! so is a process that ends. After an error of one of its operations a group is of no use any more; the program should
//! end, so that its launcher can start all processes again.

mod c10d;
mod call;
mod deadline;
pub(crate) mod digest;
mod environment;
mod joined;
mod members;
mod operation;
mod process_group;
mod rendezvous;
mod saved;

pub use operation::ReduceOp;
pub use process_group::ProcessGroup;
