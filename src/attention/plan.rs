//! Attention plans: everything that one rank needs to attend under one mask, made once and used by many layers.

use std::any::Any;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex};

use crate::attention::tell::{self, Tell};
use crate::comm::Operation;
use crate::error::{PlacementError, PlanError, Result, SupportError};
use crate::heads::HeadSwap;
use crate::kernel::DynKernel;
use crate::layout::Layout;
use crate::mask::{Bands, Mask};
use crate::ops::Attends;
use crate::ops::attention::AttentionShape;
use crate::order::{DynPlacement, Placement, Rows, TokenOrder};
use crate::plan::{Block, Content, Piece, Program, Step, View, Wire, check, check_rank};
use crate::strategy::CpStrategy;
use crate::strategy::{DynStrategy, object};
use crate::tensor::{DType, Device, DryRun};

/// What the exchange of `strategy` plans from, and the rows of this rank's group if its ranks exchange heads.
fn view_of(strategy: &dyn DynStrategy, placement: &DynPlacement, bands: Bands) -> (View, Option<Vec<Rows>>) {
    match strategy.swaps_heads() && placement.grid().inner > 1 {
        false => (View::new(placement, bands), None),
        true => {
            let (view, rows) = View::grouped(placement, bands);
            (view, Some(rows))
        }
    }
}

/// Refuses a placement whose ranks are grouped or numbered otherwise than the strategy's.
pub(crate) fn expect_groups(strategy: &dyn DynStrategy, placement: &DynPlacement) -> Result<(), PlacementError> {
    let (expected, found) = (strategy.grid(), placement.grid());
    match expected.same_groups(found) {
        true => Ok(()),
        false => Err(PlacementError::OtherGrid { strategy: strategy.name(), expected, found }),
    }
}

/// How one rank attends under one mask: made once per batch and mask, used by every layer with that mask.
///
/// The types keep plans of different orders and layouts apart; everything else is a [`RankPlan`], to which it
/// dereferences.
#[derive(Clone, Debug)]
pub struct AttentionPlan<O: TokenOrder, L: Layout> {
    placement: Arc<Placement<O, L>>,
    keys: Arc<Placement<O, L>>,
    rank_plan: Arc<RankPlan>,
}

impl<O: TokenOrder, L: Layout> AttentionPlan<O, L> {
    /// The plan of `strategy` for the placement's rank.
    ///
    /// # Errors
    /// Those of [`RankPlan::new`].
    pub fn new<H: CpStrategy<Order = O>>(strategy: &H, placement: &Arc<Placement<O, L>>, mask: &Mask) -> Result<Self> {
        let rank_plan = RankPlan::new(&*object(strategy.clone()), placement.data(), mask)?;
        Ok(Self::typed([placement, placement], Arc::new(rank_plan)))
    }

    /// A plan for these placements of queries and keys, with its types.
    pub(crate) fn typed([queries, keys]: [&Arc<Placement<O, L>>; 2], rank_plan: Arc<RankPlan>) -> Self {
        AttentionPlan { placement: queries.clone(), keys: keys.clone(), rank_plan }
    }

    /// [`RankPlan::check`].
    ///
    /// # Errors
    /// Those of [`RankPlan::check`].
    pub fn check<H: CpStrategy<Order = O>>(strategy: &H, placement: &Placement<O, L>, mask: &Mask) -> Result<()> {
        RankPlan::check(&*object(strategy.clone()), placement, mask)
    }

    /// Where the tokens are.
    pub fn placement(&self) -> &Arc<Placement<O, L>> {
        &self.placement
    }

    /// Where the keys are: with the queries, unless they were placed apart.
    pub fn keys(&self) -> &Arc<Placement<O, L>> {
        &self.keys
    }

    /// The plan without its types.
    pub fn rank_plan(&self) -> &Arc<RankPlan> {
        &self.rank_plan
    }
}

impl<O: TokenOrder, L: Layout> Deref for AttentionPlan<O, L> {
    type Target = RankPlan;

    fn deref(&self) -> &RankPlan {
        &self.rank_plan
    }
}

/// An [`AttentionPlan`] without its types: what the executor reads.
#[derive(Debug)]
pub struct RankPlan {
    /// Of the queries.
    placement: Arc<DynPlacement>,
    /// Of the keys.
    pub(super) keys: Arc<DynPlacement>,
    strategy: &'static str,
    /// Hash of strategy, its groups, placement, mask and exchange.
    made_of: u64,
    /// The same with the wire.
    hash: u64,
    pub(super) rank: usize,
    pub(super) forward: Program,
    pub(super) backward: Program,
    /// The head exchange around the programs, whose rows are then those of the rank's group.
    pub(super) swap: Option<HeadSwap>,
    /// Rows of the rank's queries, padding included.
    pub(super) stored: usize,
    /// Memory row of each valid row of queries, and of keys.
    pub(super) rows: Rows,
    pub(super) key_rows: Rows,
    /// Whether memory rows are just the valid rows, so that queries need no packing.
    pub(super) in_place: bool,
    pub(super) blocks: Arc<[Block]>,
    /// Whether a query of one sequence of a dense batch attends keys of another.
    pub(super) across_sequences: bool,
    /// Whether each pass attends once, to keys that are in the rows of their tokens, sequence by sequence.
    natural_keys: bool,
    pub(super) wire: Wire,
    /// The plan as devices take it, those that it was prepared for.
    pub(super) prepared: Mutex<Vec<Arc<dyn Any + Send + Sync>>>,
}

/// The hash of a plan whose gradients travel like this.
fn with_wire(made_of: u64, wire: Wire) -> u64 {
    let mut hasher = DefaultHasher::new();
    (made_of, wire).hash(&mut hasher);
    hasher.finish()
}

/// Whether each pass attends once, to keys that are in the rows of their tokens, sequence by sequence.
fn natural_keys(programs: &[&Program], blocks: &[Block]) -> bool {
    let inside = |outer: &Range<usize>, inner: Range<usize>| outer.start <= inner.start && inner.end <= outer.end;
    let natural = |piece: &Piece| {
        let Piece { q, k, k_row, .. } = *piece;
        let block = blocks.iter().find(|(queries, _)| inside(queries, piece.q_rows()));
        let in_block = |(_, keys): &Block| inside(keys, piece.k_rows()) && inside(keys, q.start..q.end());
        k.start == k_row && (k.step == 1 || k.len <= 1) && block.is_some_and(in_block)
    };
    programs.iter().all(|program| {
        let mut tiles = program.tiles();
        matches!((tiles.next(), tiles.next()), (Some((_, pieces)), None) if pieces.iter().all(natural))
    })
}

impl RankPlan {
    /// The plan of `strategy` for the placement's rank, which makes it by itself: it solves what other ranks would tell
    /// it.
    ///
    /// # Errors
    /// If a setting of the strategy is out of its bounds, the placement's ranks are not grouped as the strategy's, the
    /// mask does not fit the batch, or a program names what there is not ([`check_rank`]).
    pub fn new(strategy: &dyn DynStrategy, placement: &Arc<DynPlacement>, mask: &Mask) -> Result<Self> {
        Self::between(strategy, placement, placement, mask)
    }

    /// The plan by which `queries` attend `keys` that are placed apart, such as those of tokens that ranks already
    /// hold. The mask is put on both batches as [`Mask::lower_onto`] says.
    ///
    /// # Errors
    /// Those of [`RankPlan::new`]; [`PlacementError::Rank`] for placements of other ranks, and
    /// [`SupportError::Numbers`] for a strategy whose ranks exchange heads, which moves queries and keys together.
    pub fn between(
        strategy: &dyn DynStrategy,
        queries: &Arc<DynPlacement>,
        keys: &Arc<DynPlacement>,
        mask: &Mask,
    ) -> Result<Self> {
        Self::told(strategy, queries, keys, mask, None)
    }

    /// [`RankPlan::between`], with what other ranks tell that make their plans too.
    ///
    /// # Errors
    /// Those of [`RankPlan::between`], and [`CommError`](crate::error::CommError) for what another rank tells wrongly,
    /// or not.
    pub(crate) fn told(
        strategy: &dyn DynStrategy,
        queries: &Arc<DynPlacement>,
        keys: &Arc<DynPlacement>,
        mask: &Mask,
        tell: Option<Tell<'_>>,
    ) -> Result<Self> {
        strategy.check()?;
        let placement = queries;
        expect_groups(strategy, queries)?;
        expect_groups(strategy, keys)?;
        let (rank, ranks) = (queries.rank(), queries.ranks());
        if (rank, ranks) != (keys.rank(), keys.ranks()) {
            let (found, found_ranks) = (keys.rank(), keys.ranks());
            return Err(PlacementError::Rank { rank, ranks, found, found_ranks }.into());
        }
        let apart = !queries.is_same(keys);
        let batch = &**placement.batch();
        let (stored, grid) = (placement.rows(), placement.grid());
        let bands = mask.lower_onto(batch, &**keys.batch())?;
        // Sequences have no common coordinates where queries are batches of their own.
        let across_sequences = apart || batch.uniform().is_some_and(|seq| bands.cross_sequences(seq));
        let (view, group) = match apart {
            false => view_of(strategy, placement, bands),
            true if strategy.swaps_heads() && grid.inner > 1 => {
                return Err(SupportError::Numbers(format!(
                    "{} exchanges heads for the tokens of queries and keys together: place them together, or use a strategy \
                     that keeps heads",
                    strategy.name()
                ))
                .into());
            }
            true => (View::between(queries, keys, bands), None),
        };
        let swap = group.map(|rows| {
            let (outer, place) = grid.place(rank);
            let members = (0..grid.inner).map(|inner| grid.rank(outer, inner)).collect();
            HeadSwap { strategy: strategy.name(), members, place, rows }
        });
        let rows = placement.valid_rows();
        let blocks = match batch.uniform() {
            Some(_) => {
                let own = swap.as_ref().map_or(rows.len(), HeadSwap::group_rows) / batch.documents().max(1);
                (0..batch.documents()).map(|b| (b * own..(b + 1) * own, batch.document(b).stored_range())).collect()
            }
            None => Arc::default(),
        };
        let mut hasher = DefaultHasher::new();
        (strategy.name(), grid.outer, grid.inner, placement.hash(), apart.then(|| keys.hash()), mask).hash(&mut hasher);
        strategy.hash_exchange(&mut hasher);
        let (made_of, wire) = (hasher.finish(), Wire::default());
        // Programs speak of groups where heads are exchanged; this rank talks to the members in its own place.
        let inner = grid.place(rank).1;
        let peer = |outer| if swap.is_some() { grid.rank(outer, inner) } else { outer };
        if let Some(tell) = tell {
            tell::hear(strategy, &view, peer, made_of, tell)?;
        }
        let (mut forward, mut backward) = (strategy.forward(&view), strategy.backward(&view));
        check_rank(strategy.name(), &view, [&forward, &backward])?;
        if swap.is_some() {
            forward.rename_peers(peer);
            backward.rename_peers(peer);
        }
        let in_place = placement.layout().is_token_major() && rows.len() == stored;
        let natural_keys = natural_keys(&[&forward, &backward], &blocks);
        Ok(RankPlan {
            placement: placement.clone(),
            keys: keys.clone(),
            key_rows: keys.valid_rows(),
            strategy: strategy.name(),
            made_of,
            hash: with_wire(made_of, wire),
            rank,
            forward,
            backward,
            swap,
            stored,
            rows,
            in_place,
            blocks,
            across_sequences,
            natural_keys,
            wire,
            prepared: Mutex::default(),
        })
    }

    /// An operation of attention under this plan: messages of other plans are refused.
    pub(super) fn operation(&self, name: &'static str) -> Operation {
        Operation::under(name, self.hash)
    }

    /// An exchange of the programs: messages of other exchanges are refused too.
    pub(super) fn exchange(&self, name: &'static str, exchange: usize) -> Operation {
        let mut hasher = DefaultHasher::new();
        (self.hash, exchange).hash(&mut hasher);
        Operation::under(name, hasher.finish())
    }

    /// The plan with gradients that travel in other numbers.
    pub fn with_wire(mut self, wire: Wire) -> Self {
        (self.wire, self.hash) = (wire, with_wire(self.made_of, wire));
        self
    }

    /// Rehearses the programs of all ranks, as [`crate::plan::check`] says. One rank's rehearsal speaks for all.
    ///
    /// # Errors
    /// [`PlacementError::OtherGrid`] if the placement's ranks are not grouped as the strategy's,
    /// [`PlanError::Unsound`](crate::error::PlanError::Unsound) if anything does not hold.
    pub fn check(strategy: &dyn DynStrategy, placement: &DynPlacement, mask: &Mask) -> Result<()> {
        strategy.check()?;
        expect_groups(strategy, placement)?;
        let bands = mask.lower(&**placement.batch())?;
        let mut view = view_of(strategy, placement, bands).0;
        let mut programs = Vec::with_capacity(view.ranks());
        for rank in 0..view.ranks() {
            view = view.seen_from(rank);
            programs.push((strategy.forward(&view), strategy.backward(&view)));
        }
        check(strategy.name(), &view, &programs)
    }

    /// Identifies strategy, placement, mask, exchange and wire, the same on every rank.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Name of the strategy.
    pub fn strategy(&self) -> &'static str {
        self.strategy
    }

    /// Where the queries are.
    pub fn placement(&self) -> &Arc<DynPlacement> {
        &self.placement
    }

    /// Where the keys are: with the queries, unless they were placed apart.
    pub fn keys(&self) -> &Arc<DynPlacement> {
        &self.keys
    }

    /// The forward steps.
    pub fn forward(&self) -> &Program {
        &self.forward
    }

    /// The backward steps.
    pub fn backward(&self) -> &Program {
        &self.backward
    }

    /// Bytes that one forward and one backward pass hand to other ranks.
    ///
    /// # Errors
    /// If the ranks of a group cannot share the heads out.
    pub fn bytes_sent<D: Device>(&self, shape: &AttentionShape) -> Result<(usize, usize)> {
        let elem = size_of::<D::Elem>();
        let acc = self.wire.bytes(elem, size_of::<D::Acc>());
        let shared = self.shape(shape)?;
        let bytes = |program: &Program| {
            let sent = |content| program.rows_sent(self.rank, content);
            let results = sent(Content::Results) * (shared.out_width() + shared.q_heads) * size_of::<D::Acc>();
            let keys = (sent(Content::Keys) * elem + sent(Content::Gradients) * acc) * shared.kv_width();
            keys + sent(Content::Queries) * shared.q_width() * elem + results
        };
        let heads = self.swap.as_ref().map_or(Ok((0, 0)), |swap| swap.bytes_sent(shape, elem, acc))?;
        Ok((bytes(&self.forward) + heads.0, bytes(&self.backward) + heads.1))
    }

    /// [`RankPlan::bytes_sent`] of a storage type that is chosen at run time.
    ///
    /// # Errors
    /// Those of [`RankPlan::bytes_sent`].
    pub fn bytes_sent_of(&self, dtype: DType, shape: &AttentionShape) -> Result<(usize, usize)> {
        match dtype {
            DType::F64 => self.bytes_sent::<DryRun<f64>>(shape),
            DType::Bf16 | DType::F16 => self.bytes_sent::<DryRun<half::bf16>>(shape),
            _ => self.bytes_sent::<DryRun<f32>>(shape),
        }
    }

    /// Refuses a kernel that cannot attend what the mask says, or not the keys that the exchange brings.
    pub(super) fn expect<D: Attends>(&self, kernel: &dyn DynKernel<D>) -> Result<()> {
        if self.across_sequences && !kernel.across_sequences() {
            return Err(SupportError::AcrossSequences { kernel: kernel.name() }.into());
        }
        if kernel.saves() && self.forward.steps.iter().any(|step| matches!(step, Step::Serve { .. })) {
            let what =
                format!("the kernel {} keeps what it needs of each tile, which served queries have not", kernel.name());
            return Err(PlanError::Unsound { strategy: self.strategy, what }.into());
        }
        if kernel.natural_keys() && !self.natural_keys {
            let (strategy, kernel) = (self.strategy, kernel.name());
            let what = format!(
                "the kernel {kernel} needs all keys in one tile, in natural order, and the exchange brings them otherwise: \
                 use another kernel, or let the exchange put them in the order of View::natural"
            );
            return Err(PlanError::Unsound { strategy, what }.into());
        }
        Ok(())
    }

    /// What the rank attends with: all heads, or its share of them.
    pub(super) fn shape(&self, shape: &AttentionShape) -> Result<AttentionShape> {
        self.swap.as_ref().map_or(Ok(*shape), |swap| Ok(swap.share(shape)?.shape))
    }
}
