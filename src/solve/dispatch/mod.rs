//! The dispatch solver: which rank holds which tokens of a packed batch.
//!
//! Keys and values live with the queries of the same tokens, so a placement decides three things at once: how many
//! cells of the mask a rank computes, which foreign keys it must receive, and which of its own it must send.
//! MagiAttention's heap placement ([`heap()`], `magi.md` section 3) looks only at the first. [`solve`] looks at all
//! three, for all masks of a model at once: it [starts](Start) from several simple placements and improves the best
//! by moving cuts and pieces, for a number of moves that the caller chooses.
//!
//! Everything here counts in integers and draws from a generator with a fixed seed, so all ranks find the same
//! placement without talking to each other. [`measure`] judges any placement, exactly and beside lower bounds.
//!
//! ```
//! use context_parallel::layout::{Batch, Packed};
//! use context_parallel::mask::Mask;
//! use context_parallel::solve::dispatch::{DispatchOptions, Problem, Remainder, heap, solve};
//!
//! // Six equal documents, full attention inside each, on four ranks.
//! let pack = Packed::from_lengths(&[2048; 6])?;
//! let masks = [(Mask::Full.lower(&pack)?, 1)];
//! let documents: Vec<_> = (0..pack.documents()).map(|i| pack.document(i).stored_range()).collect();
//! let problem = Problem { masks: &masks, documents: &documents, ranks: 4 };
//!
//! let dealt = heap(&problem, 512, Remainder::Uneven);
//! assert_eq!(dealt.report.received, [9216; 4]); // every rank needs nearly everything
//! let solved = solve(&problem, &DispatchOptions::default());
//! assert_eq!(solved.report.area_max, dealt.report.area_max);
//! assert_eq!(solved.report.received.iter().sum::<u64>(), 4096); // two documents are cut once
//! # Ok::<(), context_parallel::error::Error>(())
//! ```

mod bound;
mod heap;
mod judge;
mod load;
mod measure;
mod model;
mod problem;
mod profile;
mod random;
mod search;
mod solve;
mod span;
mod start;
mod state;

pub use heap::{Remainder, chunk_size, heap, heap_partition, padding};
pub use measure::{PlacementReport, measure, remote};
pub use problem::{Costs, Dispatch, DispatchOptions, Problem};
pub use solve::{improve, solve};
pub use start::Start;
