//! Context parallelism whose strategy and layout are types: train and run GPT models on sequences too long for one
//! device, by splitting every sequence over ranks.
//!
//! # The model of this library
//!
//! - A [batch](layout) is documents one after another: dense (`Bshd`, `Sbhd`) or packed (`Thd`).
//! - A [token order](order) says which rank holds which token, in which row. Positions, slices of a batch, roll
//!   neighbours, attention tiles and messages are all derived from it; nothing else knows where a token is.
//! - A [mask] is a list of bands in the batch's token coordinates, whatever it looks like.
//! - A [strategy] is a composition of three types: a token order, what happens to heads, and how keys and values
//!   reach the queries. The last one writes a [program of steps](plan) per rank; one executor runs all programs.
//! - The [handler] stands between a model and a strategy: dispatch and combine, rotary embedding, roll, attention,
//!   each with its adjoint. It owns the [communicator](comm) of its rank.
//! - The [model] is a GPT that is generic in strategy, layout, attention kernel and device: `GptModel<Ring, Thd>`.
//!
//! A tensor of whole sequences is a [`Full`](order::Full), one rank's rows are a [`Shard`](order::Shard) of an order
//! and a layout. Passing one where the other is needed, mixing orders, or choosing a strategy, layout and kernel
//! that do not work together does not compile. What only shows at run time is one error before any work starts.
//!
//! Types decide what compiles and end there: placements, shards, plans, handlers, models and learners are thin shells
//! over counterparts without types of strategy, layout and kernel ([`DynPlacement`](order::DynPlacement),
//! [`UntypedHandler`](handler::UntypedHandler), [`DynModel`](model::DynModel), ..), which are compiled once. What the
//! types buy is refusal when a program is compiled, at no cost when it runs; not speed. Code that chooses at run time,
//! as the program does, uses the counterparts, with what [`strategy::select::chosen`] gives for a name; what the
//! compiler refuses elsewhere is an error there. [`DynHandler`](handler::DynHandler) is the handler chosen by names
//! over plain host memory, for adapters of other frameworks and languages.
//!
//! A function for any strategy, layout, device and communicator has one bound,
//! [`ContextParallel`](handler::ContextParallel). Who knows Megatron-LM finds its calls in [`coming_from_megatron`].
//!
//! A strategy of one's own is put through everything that can be checked by the module `conformance`, which the
//! feature of that name adds.
//!
//! # Example
//!
//! Two ranks, on two threads, run a forward pass of a small GPT on one document of 21 tokens:
//!
//! ```
//! use std::sync::Arc;
//! use context_parallel::comm::threads;
//! use context_parallel::degree::Runtime;
//! use context_parallel::handler::CpHandler;
//! use context_parallel::layout::{Packed, Thd};
//! use context_parallel::model::{Config, GptModel, Sizes, inputs::Inputs};
//! use context_parallel::strategy::Ring;
//! use context_parallel::tensor::Cpu;
//!
//! let sizes = Sizes { vocab_size: 32, hidden_size: 16, intermediate_size: 32, layers: 2, heads: 2, kv_heads: 1 };
//! let config = Config::llama(sizes)?;
//! let tokens: Vec<i64> = (0..21).collect();
//! let labels: Vec<i64> = (1..22).collect();
//! let sums = threads::run(2, |comm| {
//!     let device = Cpu::new(1);
//!     let model = GptModel::<Ring, Thd>::new(device.clone(), &config, 0)?;
//!     let handler = CpHandler::<Ring, Thd>::new(Ring::new(Runtime(2)), device, comm)?;
//!     let batch = Arc::new(Packed::from_lengths(&[21])?);
//!     let inputs = Inputs::new(&handler, batch, &tokens, &labels)?;
//!     let activations = model.forward(&handler, &inputs.tokens)?;
//!     model.loss_sum(&activations, &inputs.labels, &inputs.weights)
//! })?;
//! let loss = sums.iter().sum::<f64>() / 21.0;
//! assert!((loss - 32f64.ln()).abs() < 0.1, "fresh weights know nothing: {loss}");
//! # Ok::<(), context_parallel::error::Error>(())
//! ```

// What a user can give the library ends in an error, not in a panic; tests may be shorter.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod attention;
pub mod comm;
#[doc = include_str!("coming_from_megatron.md")]
pub mod coming_from_megatron {}
pub mod conformance;
pub mod degree;
mod elementary;
pub mod error;
pub mod files;
pub mod handler;
pub mod heads;
pub mod kernel;
pub mod layout;
pub mod mask;
pub mod model;
pub mod ops;
pub mod oracle;
pub mod order;
pub mod plan;
pub mod rope;
pub mod solve;
pub mod strategy;
pub mod tensor;
pub mod train;

/// Compiles and runs the examples of the README; one of them uses the kit.
#[cfg(all(doctest, feature = "conformance"))]
#[doc = include_str!("../README.md")]
struct Readme;
