//! The handler for other programs: chosen by names, over host memory as plain rows.

mod attend;
mod memory;

pub use attend::HostAttended;
pub use memory::{HostMut, HostOperand, HostRef};

use std::sync::Arc;

use crate::attention::RankPlan;
use crate::comm::Communicator;
use crate::error::Result;
use crate::handler::{IGNORED, UntypedHandler};
use crate::kernel::KernelKind;
use crate::mask::Mask;
use crate::order::{DynPlacement, DynShard};
use crate::plan::Wire;
use crate::strategy::select::{self, Choice};
use crate::tensor::{Cpu, Element, Matrix, Real};
use memory::Held;

/// What is known of a gradient of whole sequences, as [`DynHandler::combine_adjoint`] takes it.
#[derive(Clone, Copy, Debug)]
pub enum HostGradient<'a, T> {
    /// Every rank holds all of it: of a loss that all ranks computed alike.
    Replicated(HostRef<'a, T>),
    /// Every rank holds one summand: of a loss whose terms are spread over ranks.
    Partial(HostRef<'a, T>),
}

/// A handler that is chosen by names when the program runs, over plain rows of host memory: what adapters for other
/// frameworks and languages stand on.
///
/// Operands are rows of the caller's memory ([`HostRef`]), read where they are, in the order of the layout; what
/// attention keeps for its backward pass stays borrowed or is given away ([`HostOperand`]). Results are matrices that
/// dereference to slices; [`HostMut`](crate::handler::HostMut) copies one into memory of the caller's. The element type
/// is that of the operands: one handler serves `f32`, `f64`, `bf16` and `f16`. What the types of a
/// [`CpHandler`](crate::handler::CpHandler) refuse when a program is compiled is an error here; the numbers are the
/// same to the last bit.
///
/// ```
/// use context_parallel::comm::threads;
/// use context_parallel::handler::{DynHandler, HostRef};
/// use context_parallel::mask::Mask;
/// use context_parallel::ops::attention::AttentionShape;
/// use context_parallel::strategy::select::Choice;
/// use context_parallel::tensor::{Cpu, Matrix};
///
/// let [strategy, layout, kernel] = ["p2p", "thd", "flash"].map(String::from);
/// let choice = Choice { strategy, layout, kernel, degree: 2, ..Choice::default() };
/// let tokens: Vec<f32> = (0..12 * 8).map(|i| i as f32 / 96.0).collect();
/// let shape = AttentionShape { q_heads: 2, kv_heads: 2, qk_dim: 4, v_dim: 4, scale: 0.5 };
/// threads::run(2, |comm| {
///     let handler = DynHandler::new(&choice, Cpu::new(1), comm)?;
///     let placement = handler.place(&[5, 7])?;
///     let plan = handler.plan(&placement, &Mask::Causal)?;
///     let x = handler.dispatch(&placement, HostRef::new(&tokens, 12, 8))?;
///     let given = Matrix::from_vec(vec![0.5; x.len()], x.rows(), 8);
///     let (out, attended) = handler.attend(&plan, &shape, &x, &x, given)?;
///     let [dq, dk, dv] = attended.backward(&handler, &out)?;
///     assert_eq!([dq.rows(), dk.rows(), dv.rows()], [x.rows(); 3]);
///     assert_eq!(handler.combine(&placement, &out)?.len(), tokens.len());
///     Ok(())
/// })?;
/// # Ok::<(), context_parallel::error::Error>(())
/// ```
pub struct DynHandler {
    handler: UntypedHandler<Cpu<f32>>,
    kernel: KernelKind,
}

impl DynHandler {
    /// The handler of this rank of `comm` for what `choice` names, with the threads and the memory of `device`.
    ///
    /// # Errors
    /// Names that are not known or do not work together, a degree that is not the number of ranks, and settings out of
    /// their bounds.
    #[doc(alias = "get_cp_handler_cls")]
    pub fn new(choice: &Choice, device: Cpu<f32>, comm: impl Communicator + 'static) -> Result<Self> {
        let chosen = select::chosen(choice)?;
        let handler = UntypedHandler::new(chosen.strategy, chosen.layout, device, Box::new(comm))?;
        Ok(DynHandler { handler, kernel: chosen.kernel })
    }

    /// [`CpHandler::with_gradient_wire`](crate::handler::CpHandler::with_gradient_wire).
    pub fn with_gradient_wire(mut self, wire: Wire) -> Self {
        self.handler = self.handler.with_gradient_wire(wire);
        self
    }

    /// The handler under this one, for shards and devices of one type.
    pub fn untyped(&self) -> &UntypedHandler<Cpu<f32>> {
        &self.handler
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.handler.rank()
    }

    /// Number of ranks that share a sequence.
    pub fn ranks(&self) -> usize {
        self.handler.ranks()
    }

    /// Deals out documents, or sequences of a dense layout, of these lengths, for causal attention.
    ///
    /// # Errors
    /// In a dense layout, lengths that differ; documents that cannot be dealt out.
    pub fn place(&self, lengths: &[usize]) -> Result<Arc<DynPlacement>> {
        self.place_for(lengths, lengths, &[(Mask::Causal, 1)])
    }

    /// Deals out documents with padding (`stored` rows, of which the first `valid` count), for a model whose layers
    /// attend under `masks`, each with the number of layers that use it.
    ///
    /// # Errors
    /// Those of [`DynHandler::place`], lengths that do not go together, and masks that do not fit.
    pub fn place_for(&self, valid: &[usize], stored: &[usize], masks: &[(Mask, u64)]) -> Result<Arc<DynPlacement>> {
        self.handler.place_for(self.handler.layout().padded_batch_of(valid, stored)?, masks)
    }

    /// How this rank attends under `mask`: [`CpHandler::plan`](crate::handler::CpHandler::plan).
    ///
    /// # Errors
    /// Those of `CpHandler::plan`.
    pub fn plan(&self, placement: &Arc<DynPlacement>, mask: &Mask) -> Result<Arc<RankPlan>> {
        self.handler.plan(placement, mask)
    }

    /// Position of each of this rank's rows in its document: what a rotary embedding takes.
    pub fn positions(&self, placement: &DynPlacement) -> Vec<i64> {
        placement.positions().into_iter().map(|position| position as i64).collect()
    }

    /// This rank's rows of whole sequences, which every rank has. Also the gradient of what
    /// [`DynHandler::combine`] took, if all ranks hold that of what it gave.
    ///
    /// # Errors
    /// Another number of rows than the batch has, and a placement of another handler.
    pub fn dispatch<'a, T: Element>(
        &self,
        placement: &Arc<DynPlacement>,
        full: impl Into<HostRef<'a, T>>,
    ) -> Result<Matrix<T>> {
        let full = full.into().held("the whole sequences", placement.batch().tokens())?;
        Ok(self.handler.by_ref().dispatch(placement, &full)?.into_matrix())
    }

    /// The whole sequences from every rank's rows, on every rank; all bits survive.
    ///
    /// # Errors
    /// Another number of rows than this rank has, a placement of another handler, and failures of other ranks.
    pub fn combine<'a, T: Element>(
        &self,
        placement: &Arc<DynPlacement>,
        shard: impl Into<HostRef<'a, T>>,
    ) -> Result<Matrix<T>> {
        self.handler.by_ref().combine(&*held_shard(shard.into().into(), "the shard", placement)?)
    }

    /// The adjoint of [`DynHandler::dispatch`]: the gradient of whole sequences, which is whole on every rank, from
    /// those of all shards.
    ///
    /// # Errors
    /// Those of [`DynHandler::combine`].
    pub fn dispatch_adjoint<'a, T: Element>(
        &self,
        placement: &Arc<DynPlacement>,
        gradient: impl Into<HostRef<'a, T>>,
    ) -> Result<Matrix<T>> {
        self.combine(placement, gradient)
    }

    /// The adjoint of [`DynHandler::combine`]: the gradient of this rank's rows. A replicated gradient is cut, a
    /// partial one is summed over ranks, in rank order.
    ///
    /// # Errors
    /// Another number of rows than the batch has, a placement of another handler, and failures of other ranks.
    pub fn combine_adjoint<T: Real>(
        &self,
        placement: &Arc<DynPlacement>,
        gradient: HostGradient<'_, T>,
    ) -> Result<Matrix<T>> {
        match gradient {
            HostGradient::Replicated(full) => self.dispatch(placement, full),
            HostGradient::Partial(full) => {
                let full = full.held("the gradient of whole sequences", placement.batch().tokens())?;
                Ok(self.handler.by_ref().summed(placement, &full)?.into_matrix())
            }
        }
    }

    /// `y` with `y[p] = x[p + offset]` within each document's valid tokens, `fill` elsewhere. An offset of 1 is
    /// Megatron-LM's shift of -1.
    ///
    /// # Errors
    /// Another number of rows than this rank has, a placement of another handler, and failures of other ranks.
    pub fn roll<'a, T: Element>(
        &self,
        placement: &Arc<DynPlacement>,
        shard: impl Into<HostRef<'a, T>>,
        offset: i64,
        fill: T,
    ) -> Result<Matrix<T>> {
        let shard = held_shard(shard.into().into(), "the shard", placement)?;
        Ok(self.handler.by_ref().roll(&shard, offset, fill)?.into_matrix())
    }

    /// The adjoint of [`DynHandler::roll`].
    ///
    /// # Errors
    /// Those of `roll`.
    pub fn roll_adjoint<'a, T: Element>(
        &self,
        placement: &Arc<DynPlacement>,
        gradient: impl Into<HostRef<'a, T>>,
        offset: i64,
    ) -> Result<Matrix<T>> {
        let gradient = held_shard(gradient.into().into(), "the gradient", placement)?;
        Ok(self.handler.by_ref().roll_adjoint(&gradient, offset)?.into_matrix())
    }

    /// Labels of this rank's rows from its token ids `[rows, 1]`: the next token of the same document, [`IGNORED`] at
    /// its end and for padding.
    ///
    /// # Errors
    /// Those of [`DynHandler::roll`].
    pub fn labels<'a>(
        &self,
        placement: &Arc<DynPlacement>,
        tokens: impl Into<HostRef<'a, i64>>,
    ) -> Result<Matrix<i64>> {
        self.roll(placement, tokens, 1, IGNORED)
    }

    /// The sums of some numbers over ranks, in rank order: losses and the labels that count.
    ///
    /// # Errors
    /// Ranks that attended under other plans before, and failures of other ranks.
    pub fn sum(&self, values: &[f64]) -> Result<Vec<f64>> {
        self.handler.by_ref().sum(values)
    }
}

/// Rows of a rank, where they are.
fn held_shard<'a, T: Element>(
    rows: HostOperand<'a, T>,
    what: &'static str,
    placement: &Arc<DynPlacement>,
) -> Result<Held<'a, DynShard<T>>> {
    rows.held(what, placement.rows())?.wrap(|matrix| DynShard::new(matrix, placement.clone()))
}
