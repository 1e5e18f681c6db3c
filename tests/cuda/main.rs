//! CUDA without a GPU: the real libtorch_cuda runs on a runtime that counts.
//!
//! `runtime/` holds a stand-in for the CUDA runtime, the driver, cuBLAS and NCCL, in C. Each test runs in a process of its
//! own that loads it before libtorch (`counting::Gpu`). These are real there: the devices and kinds of tensors, the
//! choice of kernels and their launches by name, matrix products, copies (pinned or pageable), waits for the device,
//! memory, and errors when memory runs out. Kernels do nothing: numbers, times, and cuDNN are not shown. Numbers are
//! held by the tests on the CPU.
//!
//! Without libtorch's CUDA libraries, their headers and a C compiler, every test here is skipped, in one visible line.

#[path = "../common/mod.rs"]
mod common;
mod counting;

mod adapters;
mod attention;
mod checkpoints;
mod device;
#[cfg(feature = "kernels")]
mod fused;
#[cfg(feature = "kernels")]
mod fused_checks;
mod generation;
mod graphs;
mod heads;
mod launches;
mod llama;
mod memory;
#[cfg(feature = "kernels")]
mod mixed_rows;
mod models;
#[cfg(feature = "distributed")]
mod nccl;
mod out_of_memory;
mod quiet;
mod runtime_itself;
mod runtime_order;
mod streamed;
mod training_step;
