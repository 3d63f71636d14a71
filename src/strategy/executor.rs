//! The executor: walks through the programs of any strategy, forward and backward.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::comm::{Collectives, Communicator, Pending, Receive, Send, open};
use crate::error::{PlanError, Result};
use crate::layout::{Batch, Layout};
use crate::mask::Mask;
use crate::ops::Ops;
use crate::ops::attention::AttentionShape;
use crate::ops::unfused::Block;
use crate::order::{Placement, TokenOrder};
use crate::plan::{Content, Program, Step, Transfer, View, check};
use crate::strategy::heads::{HeadExchange, HeadSwap, Swapped};
use crate::strategy::{CpStrategy, Kernel, KvExchange, TileOperands};
use crate::tensor::{AccMatrix, Device, ElemMatrix, Element, Matrix};

/// How one rank attends under one mask: made once per batch and mask, used by every layer with that mask.
#[derive(Debug)]
pub struct AttentionPlan<O: TokenOrder, L: Layout> {
    placement: Arc<Placement<O, L>>,
    rank_plan: RankPlan,
    /// Identifies strategy, placement and mask, the same on every rank.
    hash: u64,
    /// Whether every rank is known to have the same plan.
    agreed: AtomicBool,
}

/// A plan without the types that it was made from: what the executor reads, compiled once for all of them.
#[derive(Debug)]
pub struct RankPlan {
    rank: usize,
    forward: Program,
    backward: Program,
    /// The head exchange around the programs, whose rows are then those of the rank's group.
    swap: Option<HeadSwap>,
    /// Rows of the rank, padding included.
    stored: usize,
    /// Memory row of each valid row.
    rows: Vec<usize>,
    /// Whether memory rows are just the valid rows, so that queries need no packing.
    in_place: bool,
    blocks: Vec<Block>,
}

impl<O: TokenOrder, L: Layout> AttentionPlan<O, L> {
    /// The plan of `strategy` for the placement's rank.
    ///
    /// # Errors
    /// If the mask does not fit the batch.
    pub fn new<H: CpStrategy<Order = O>>(strategy: &H, placement: &Arc<Placement<O, L>>, mask: &Mask) -> Result<Self> {
        let batch = placement.batch();
        let (rank, stored, grid) = (placement.rank(), placement.rows(), placement.grid());
        let bands = mask.lower(&**batch)?;
        let (view, swap) = match H::Heads::SWAPS && grid.inner > 1 {
            false => (View::new(placement, bands), None),
            true => {
                let (view, rows) = View::grouped(placement, bands);
                let (outer, place) = grid.place(rank);
                let members = (0..grid.inner).map(|inner| grid.rank(outer, inner)).collect();
                (view, Some(HeadSwap { members, place, rows }))
            }
        };
        let held = placement.valid_runs_of(rank);
        let rows = held.iter().flat_map(|(local, run)| (*local..local + run.len).map(|at| placement.row_of(rank, at)));
        let rows: Vec<usize> = rows.collect();
        let blocks = match batch.uniform() {
            Some(seq) => {
                let own = swap.as_ref().map_or(rows.len(), HeadSwap::group_rows) / batch.documents().max(1);
                (0..batch.documents()).map(|b| (b * own..(b + 1) * own, b * seq..(b + 1) * seq)).collect()
            }
            None => Vec::new(),
        };
        let kv = strategy.kv();
        let (mut forward, mut backward) = (kv.forward(&view), kv.backward(&view));
        if swap.is_some() {
            // Programs speak of groups; this rank talks to the members in its own place.
            let inner = grid.place(rank).1;
            forward.rename_peers(|outer| grid.rank(outer, inner));
            backward.rename_peers(|outer| grid.rank(outer, inner));
        }
        let in_place = L::TOKEN_MAJOR && rows.len() == stored;
        let rank_plan = RankPlan { rank, forward, backward, swap, stored, rows, in_place, blocks };
        let mut hasher = DefaultHasher::new();
        (H::NAME, placement.hash(), mask).hash(&mut hasher);
        let (hash, agreed) = (hasher.finish(), AtomicBool::new(placement.ranks() == 1));
        Ok(AttentionPlan { placement: placement.clone(), rank_plan, hash, agreed })
    }

    /// Rehearses the programs of all ranks, as [`crate::plan::check`] says. One rank's rehearsal speaks for all.
    ///
    /// # Errors
    /// [`PlanError::Unsound`] if anything does not hold.
    pub fn check<H: CpStrategy<Order = O>>(strategy: &H, placement: &Arc<Placement<O, L>>, mask: &Mask) -> Result<()> {
        let (bands, kv) = (mask.lower(&**placement.batch())?, strategy.kv());
        let mut view = match H::Heads::SWAPS && placement.grid().inner > 1 {
            false => View::new(placement, bands),
            true => View::grouped(placement, bands).0,
        };
        let mut programs = Vec::with_capacity(view.ranks());
        for rank in 0..view.ranks() {
            view = view.turned_to(rank);
            programs.push((kv.forward(&view), kv.backward(&view)));
        }
        check(H::NAME, &view, &programs)
    }

    /// Identifies strategy, placement and mask, the same on every rank.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Compares the plan's hash over ranks, the first time that it is used.
    ///
    /// # Errors
    /// [`PlanError::Disagree`] with the first rank whose plan is another.
    pub fn agree<D: Device, C: Communicator<D::Storage>>(&self, device: &D, comm: &C) -> Result<()> {
        if self.agreed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mine = device.upload(&[self.hash as i64]);
        let counts = vec![1; comm.size()];
        for (rank, hash) in comm.all_gather_v(mine, &counts)?.into_iter().enumerate() {
            let hash = device.download(&hash)[0] as u64;
            if hash != self.hash {
                let (own, found) = (self.hash, hash);
                return Err(PlanError::Disagree { own_rank: comm.rank(), own, rank, found }.into());
            }
        }
        self.agreed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes that [`AttentionPlan::agree`] hands to other ranks, once.
    pub fn agreement_bytes(&self) -> usize {
        (self.placement.ranks() - 1) * size_of::<u64>()
    }

    /// Where the tokens are.
    pub fn placement(&self) -> &Arc<Placement<O, L>> {
        &self.placement
    }

    /// What the executor reads.
    pub fn rank_plan(&self) -> &RankPlan {
        &self.rank_plan
    }

    /// The forward steps.
    pub fn forward(&self) -> &Program {
        &self.rank_plan.forward
    }

    /// The backward steps.
    pub fn backward(&self) -> &Program {
        &self.rank_plan.backward
    }

    /// Bytes that one forward and one backward pass hand to other ranks.
    pub fn bytes_sent<D: Device>(&self, shape: &AttentionShape) -> (usize, usize) {
        let RankPlan { rank, swap, .. } = &self.rank_plan;
        let (elem, acc) = (size_of::<D::Elem>(), size_of::<D::Acc>());
        let width = self.rank_plan.shape(shape).kv_width();
        let bytes = |program: &Program| {
            let keys = program.rows_sent(*rank, Content::Keys) * elem;
            (keys + program.rows_sent(*rank, Content::Gradients) * acc) * width
        };
        let heads = swap.as_ref().map_or((0, 0), |swap| swap.bytes_sent(shape, elem, acc));
        (bytes(self.forward()) + heads.0, bytes(self.backward()) + heads.1)
    }
}

impl RankPlan {
    /// What the rank attends with: all heads, or its share of them.
    fn shape(&self, shape: &AttentionShape) -> AttentionShape {
        self.swap.as_ref().map_or(*shape, |swap| swap.share(shape).shape)
    }
}

/// What the backward pass needs of a forward pass: partial results are kept in the accumulation type.
pub struct AttentionSaved<D: Device, K: Kernel> {
    out: AccMatrix<D>,
    lse: AccMatrix<D>,
    tiles: Vec<K::Saved<D>>,
    /// Queries, keys and values after a head exchange, so that they need not travel again.
    swapped: Option<Swapped<D>>,
}

impl<D: Device, K: Kernel> AttentionSaved<D, K> {
    /// Log-sum-exp of each valid row and head, `[valid rows, q_heads]`; `-inf` where nothing is attended. Zero for
    /// kernels that do not compute it. Under a head exchange, of the group's rows and this rank's heads.
    pub fn lse(&self) -> &AccMatrix<D> {
        &self.lse
    }
}

/// What turns plans into numbers; [`crate::strategy::Supports`] says which one a combination uses.
pub trait Execute<K: Kernel> {
    /// Attention of this rank's queries. `q [rows, q_width]`, `k [rows, k_width]`, `v [rows, v_width]`; returns the
    /// output `[rows, out_width]`, 0 for padding.
    fn forward<D, C>(
        device: &D,
        comm: &C,
        plan: &RankPlan,
        shape: &AttentionShape,
        qkv: [&ElemMatrix<D>; 3],
    ) -> Result<(ElemMatrix<D>, AttentionSaved<D, K>)>
    where
        D: Ops,
        C: Communicator<D::Storage> + ?Sized;

    /// Gradients of queries, keys and values from that of the output. Operands as in [`Execute::forward`].
    fn backward<D, C>(
        device: &D,
        comm: &C,
        plan: &RankPlan,
        shape: &AttentionShape,
        qkv: [&ElemMatrix<D>; 3],
        saved: &AttentionSaved<D, K>,
        dout: &ElemMatrix<D>,
    ) -> Result<[ElemMatrix<D>; 3]>
    where
        D: Ops,
        C: Communicator<D::Storage> + ?Sized;
}

/// Walks through the plan's programs, computing tiles with kernel `K`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Executor<K>(PhantomData<K>);

impl<K: Kernel> Execute<K> for Executor<K> {
    fn forward<D, C>(
        device: &D,
        comm: &C,
        plan: &RankPlan,
        shape: &AttentionShape,
        [q, k, v]: [&ElemMatrix<D>; 3],
    ) -> Result<(ElemMatrix<D>, AttentionSaved<D, K>)>
    where
        D: Ops,
        C: Communicator<D::Storage> + ?Sized,
    {
        let whole = shape;
        let shape = &plan.shape(whole);
        let mut walk = Walk::new(device, comm, &plan.forward, plan.rank, shape.kv_width());
        let swapped = match &plan.swap {
            Some(swap) => Some(swap.bring(device, comm, &plan.rows, whole, [q, k, v])?),
            None => None,
        };
        let (queries, kv) = match &swapped {
            Some(Swapped { q, kv }) => (Packed::Original(q), duplicate(device, kv)),
            None => (packed(device, plan, q), packed_kv(device, plan, shape, k, v)),
        };
        let rows = queries.matrix().rows();
        walk.keys[0] = Some(kv);
        let result = || (device.matrix(rows, shape.out_width()), device.zero_matrix(rows, shape.q_heads));
        let (mut out, mut lse): (AccMatrix<D>, AccMatrix<D>) = result();
        let mut part: Option<(AccMatrix<D>, AccMatrix<D>)> = None;
        let mut tiles: Vec<K::Saved<D>> = Vec::new();
        for step in &plan.forward.steps {
            match step {
                Step::Tile { slot, pieces } => {
                    let kv = walk.key_slot(*slot);
                    let tile = TileOperands { shape, q: queries.matrix(), kv, pieces, blocks: &plan.blocks };
                    let (out, lse) = match tiles.is_empty() {
                        true => (&mut out, &mut lse),
                        false => {
                            let (out, lse) = part.get_or_insert_with(result);
                            (out, lse)
                        }
                    };
                    tiles.push(K::forward(device, tile, out, lse));
                }
                Step::Merge => {
                    let (part_out, part_lse) = part.as_ref().ok_or_else(|| unsound("a merge before a second tile"))?;
                    K::merge(device, shape, &mut out, &mut lse, (part_out, part_lse))?;
                }
                step => walk.step(step)?,
            }
        }
        let mut elem = device.to_elem_matrix(&out);
        if let Some(swap) = &plan.swap {
            elem = swap.give_back(device, comm, whole, whole.v_dim, &elem)?;
        }
        let full = unpacked(device, plan, elem);
        Ok((full, AttentionSaved { out, lse, tiles, swapped }))
    }

    fn backward<D, C>(
        device: &D,
        comm: &C,
        plan: &RankPlan,
        shape: &AttentionShape,
        [q, k, v]: [&ElemMatrix<D>; 3],
        saved: &AttentionSaved<D, K>,
        dout: &ElemMatrix<D>,
    ) -> Result<[ElemMatrix<D>; 3]>
    where
        D: Ops,
        C: Communicator<D::Storage> + ?Sized,
    {
        let whole = shape;
        let shape = &plan.shape(whole);
        let dout = match &plan.swap {
            Some(swap) => Packed::Copy(swap.bring_output_gradient(device, comm, &plan.rows, whole, dout)?),
            None => packed(device, plan, dout),
        };
        let (queries, kv) = match &saved.swapped {
            Some(Swapped { q, kv }) => (Packed::Original(q), duplicate(device, kv)),
            None => (packed(device, plan, q), packed_kv(device, plan, shape, k, v)),
        };
        let delta = device.attention_delta(shape, &saved.out, dout.matrix());
        let mut dq: AccMatrix<D> = device.zero_matrix(queries.matrix().rows(), shape.q_width());
        let mut walk = Walk::new(device, comm, &plan.backward, plan.rank, shape.kv_width());
        walk.keys[0] = Some(kv);
        let mut tiles = saved.tiles.iter();
        for step in &plan.backward.steps {
            match step {
                Step::Tile { slot, pieces } => {
                    let of_tile = tiles.next().ok_or_else(|| unsound("more tiles backward than forward"))?;
                    let mut dkv = walk.take_gradients(*slot);
                    let kv = walk.key_slot(*slot);
                    let tile = TileOperands { shape, q: queries.matrix(), kv, pieces, blocks: &plan.blocks };
                    let dout = dout.matrix();
                    K::backward(device, tile, of_tile, &saved.out, &saved.lse, &delta, dout, &mut dq, &mut dkv);
                    walk.gradients[*slot] = Some(dkv);
                }
                Step::Merge => {}
                step => walk.step(step)?,
            }
        }
        let mut home = walk.take_gradients(plan.backward.home);
        let mut dq = device.to_elem_matrix(&dq);
        if let Some(swap) = &plan.swap {
            dq = swap.give_back(device, comm, whole, whole.qk_dim, &dq)?;
            home = swap.return_gradients(device, comm, whole, &home)?;
        }
        let home = device.to_elem_matrix(&home);
        let spread = |columns: usize, first: usize| {
            let mut whole: ElemMatrix<D> = blank(device, plan, columns);
            device.scatter_rows(&home, &plan.rows, &mut whole, first);
            whole
        };
        let (dk, dv) = (spread(whole.k_width(), 0), spread(whole.v_width(), whole.k_width()));
        Ok([unpacked(device, plan, dq), dk, dv])
    }
}

fn unsound(what: &str) -> PlanError {
    PlanError::Unsound { strategy: "executor", what: what.to_string() }
}

/// A matrix of valid rows: packed, or the original where nothing needs moving.
enum Packed<'a, D: Device> {
    Original(&'a ElemMatrix<D>),
    Copy(ElemMatrix<D>),
}

impl<D: Device> Packed<'_, D> {
    fn matrix(&self) -> &ElemMatrix<D> {
        match self {
            Packed::Original(matrix) => matrix,
            Packed::Copy(matrix) => matrix,
        }
    }
}

fn packed<'a, D: Ops>(device: &D, plan: &RankPlan, x: &'a ElemMatrix<D>) -> Packed<'a, D> {
    if plan.in_place {
        return Packed::Original(x);
    }
    let mut copy = device.matrix(plan.rows.len(), x.cols());
    device.gather_rows(x, &plan.rows, &mut copy, 0);
    Packed::Copy(copy)
}

fn duplicate<D: Ops>(device: &D, x: &ElemMatrix<D>) -> ElemMatrix<D> {
    Matrix::new(device.duplicate(x.buffer()), x.rows(), x.cols())
}

fn packed_kv<D: Ops>(
    device: &D,
    plan: &RankPlan,
    shape: &AttentionShape,
    k: &ElemMatrix<D>,
    v: &ElemMatrix<D>,
) -> ElemMatrix<D> {
    let mut kv = device.matrix(plan.rows.len(), shape.kv_width());
    device.gather_rows(k, &plan.rows, &mut kv, 0);
    device.gather_rows(v, &plan.rows, &mut kv, shape.k_width());
    kv
}

/// A matrix of all rows that [`unpacked`] rows are written into: zero where there is padding.
fn blank<D: Ops>(device: &D, plan: &RankPlan, cols: usize) -> ElemMatrix<D> {
    match plan.rows.len() == plan.stored {
        true => device.matrix(plan.stored, cols),
        false => device.zero_matrix(plan.stored, cols),
    }
}

fn unpacked<D: Ops>(device: &D, plan: &RankPlan, x: ElemMatrix<D>) -> ElemMatrix<D> {
    if plan.in_place {
        return x;
    }
    let mut whole = blank(device, plan, x.cols());
    device.scatter_rows(&x, &plan.rows, &mut whole, 0);
    whole
}

/// The slots of a program under way, and its exchanges.
struct Walk<'a, D: Device, C: ?Sized> {
    device: &'a D,
    comm: &'a C,
    program: &'a Program,
    rank: usize,
    width: usize,
    keys: Vec<Option<ElemMatrix<D>>>,
    gradients: Vec<Option<AccMatrix<D>>>,
    open: HashMap<usize, Open<'a, D>>,
}

/// An exchange under way.
struct Open<'a, D: Device> {
    content: Content,
    receives: &'a [Transfer],
    pending: Pending<D::Storage>,
    /// What the rank sends itself.
    own_keys: VecDeque<ElemMatrix<D>>,
    own_gradients: VecDeque<AccMatrix<D>>,
}

impl<'a, D: Ops, C: Communicator<D::Storage> + ?Sized> Walk<'a, D, C> {
    fn new(device: &'a D, comm: &'a C, program: &'a Program, rank: usize, width: usize) -> Self {
        let slots = program.slots.len();
        let keys = (0..slots).map(|_| None).collect();
        let gradients = (0..slots).map(|_| None).collect();
        Walk { device, comm, program, rank, width, keys, gradients, open: HashMap::new() }
    }

    fn key_slot(&mut self, slot: usize) -> &ElemMatrix<D> {
        self.keys[slot].get_or_insert_with(|| self.device.matrix(self.program.slots[slot], self.width))
    }

    fn take_gradients(&mut self, slot: usize) -> AccMatrix<D> {
        let new = || self.device.zero_matrix(self.program.slots[slot], self.width);
        self.gradients[slot].take().unwrap_or_else(new)
    }

    fn step(&mut self, step: &'a Step) -> Result<()> {
        match step {
            Step::Post { exchange, content: Content::Keys, sends, receives } => {
                let (messages, own_keys) = self.pack(sends, |walk, slot| walk.keys[slot].as_ref());
                let pending = self.post::<D::Elem>("attention keys", messages, receives)?;
                let (content, own_gradients) = (Content::Keys, VecDeque::new());
                self.open.insert(*exchange, Open { content, receives, pending, own_keys, own_gradients });
            }
            Step::Post { exchange, content: Content::Gradients, sends, receives } => {
                let (messages, own_gradients) = self.pack(sends, |walk, slot| walk.gradients[slot].as_ref());
                let pending = self.post::<D::Acc>("attention gradients", messages, receives)?;
                let (content, own_keys) = (Content::Gradients, VecDeque::new());
                self.open.insert(*exchange, Open { content, receives, pending, own_keys, own_gradients });
            }
            Step::Wait { exchange } => self.wait(*exchange)?,
            Step::Free { slot } => {
                self.keys[*slot] = None;
                if *slot != self.program.home {
                    self.gradients[*slot] = None;
                }
            }
            Step::Tile { .. } | Step::Merge => {}
        }
        Ok(())
    }

    /// Copies the rows to send: messages for other ranks, and what stays here.
    #[allow(clippy::type_complexity)]
    fn pack<T: Element>(
        &self,
        sends: &[Transfer],
        slot: impl Fn(&Self, usize) -> Option<&Matrix<T, D::Storage>>,
    ) -> (Vec<Send<D::Storage>>, VecDeque<Matrix<T, D::Storage>>) {
        let (mut messages, mut own) = (Vec::new(), VecDeque::new());
        for send in sends.iter().filter(|send| !send.rows.is_empty()) {
            let rows = match slot(self, send.slot) {
                Some(source) => {
                    let mut rows = self.device.matrix(send.rows.len(), self.width);
                    self.device.gather_rows(source, &send.rows, &mut rows, 0);
                    rows
                }
                // Nothing was ever added to these gradients.
                None => self.device.zero_matrix(send.rows.len(), self.width),
            };
            match send.peer == self.rank {
                true => own.push_back(rows),
                false => messages.push(Send { to: send.peer, parcel: rows.into_buffer().into() }),
            }
        }
        (messages, own)
    }

    fn post<T: Element>(
        &self,
        operation: &'static str,
        messages: Vec<Send<D::Storage>>,
        receives: &[Transfer],
    ) -> Result<Pending<D::Storage>> {
        let expected = receives.iter().filter(|receive| receive.peer != self.rank && !receive.rows.is_empty());
        let expected = expected.map(|receive| Receive::of::<T>(receive.peer, receive.rows.len() * self.width));
        self.comm.exchange(operation, messages, expected.collect())
    }

    fn wait(&mut self, exchange: usize) -> Result<()> {
        let mut exchange = self.open.remove(&exchange).ok_or_else(|| unsound("a wait before its post"))?;
        let mut parcels = exchange.pending.wait()?.parcels.into_iter();
        for receive in exchange.receives.iter().filter(|receive| !receive.rows.is_empty()) {
            let (rows, slot) = (receive.rows.len(), receive.slot);
            let own = receive.peer == self.rank;
            let missing = || unsound("a receive without a message");
            match exchange.content {
                Content::Keys => {
                    let matrix = match own {
                        true => exchange.own_keys.pop_front().ok_or_else(missing)?,
                        false => {
                            let parcel = parcels.next().ok_or_else(missing)?;
                            Matrix::new(open(parcel, receive.peer, "attention keys")?, rows, self.width)
                        }
                    };
                    let whole = receive.rows.iter().copied().eq(0..self.program.slots[slot]);
                    if whole && self.keys[slot].is_none() {
                        self.keys[slot] = Some(matrix);
                        continue;
                    }
                    self.key_slot(slot);
                    if let Some(target) = &mut self.keys[slot] {
                        self.device.scatter_rows(&matrix, &receive.rows, target, 0);
                    }
                }
                Content::Gradients => {
                    let matrix = match own {
                        true => exchange.own_gradients.pop_front().ok_or_else(missing)?,
                        false => {
                            let parcel = parcels.next().ok_or_else(missing)?;
                            Matrix::new(open(parcel, receive.peer, "attention gradients")?, rows, self.width)
                        }
                    };
                    let mut target = self.take_gradients(slot);
                    self.device.scatter_add_rows(&matrix, &receive.rows, &mut target);
                    self.gradients[slot] = Some(target);
                }
            }
        }
        Ok(())
    }
}
